// What threads that compute together need: a place to wait for one another, and room.

#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

// Where threads wait for one another, some hundred times a step. OpenMP's own barrier spins for as long as it takes; on a
// machine with other work the thread that is waited for may not be running, and needs the processor that spins.
class Barrier {
  public:
    void wait(int threads) {
        const int now = round_.load(std::memory_order_acquire);
        if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            waiting_.store(0, std::memory_order_relaxed);
            round_.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == now; spins++)
            if (spins > SPINS) std::this_thread::yield();
    }

  private:
    static constexpr int SPINS = 200000;  // some hundred microseconds. Who yields on a busy machine may wait for milliseconds
    std::atomic<int> waiting_{0}, round_{0};
};

// Memory that grows as it is needed, and begins where a line of the cache does.
class Room {
  public:
    char* of(size_t size) {
        bytes_.resize(size + 64);
        return (char*)((uintptr_t(bytes_.data()) + 63) / 64 * 64);
    }

  private:
    std::vector<char> bytes_;
};
