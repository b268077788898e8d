// What is computed of each number, or of a row by itself: activations and norms.

#pragma once

#include <cmath>
#include <vector>

#include "vectors.h"

enum Activation { NONE, RELU, GELU, GELU_TANH, SILU };

inline floats hyperbolic_tangent(floats x) {  // tanh x = 1 - 2 / (e^2x + 1)
    const floats bounded = larger(-larger(-x, all(-15.0f)), all(-15.0f));
    return 1 - 2 / (exponential(2 * bounded) + 1);
}

inline floats activated(floats x, long activation) {
    switch (activation) {
        case RELU: return larger(x, floats{});
        case GELU: {  // x Phi(x)
            float lanes[LANES];
            store(x, lanes);
            for (float& lane : lanes) lane = 0.5f * lane * (1 + std::erf(lane * 0.70710678f));
            return load(lanes);
        }
        case GELU_TANH:  // Hendrycks & Gimpel 2016, section 2
            return 0.5f * x * (1 + hyperbolic_tangent(0.79788456f * (x + 0.044715f * x * x * x)));
        case SILU: return x / (1 + exponential(-larger(x, all(-80.0f))));  // x sigmoid(x)
    }
    return x;
}

// act(x), or, gated, act(first half) * second half, in `buffer`; x itself where there is no activation. size: of the result.
inline const float* activate(const float* x, long size, long activation, bool gated, std::vector<float>& buffer) {
    if (activation == NONE) return x;
    buffer.resize(size + LANES);
    const float* up = x + size;
    float* y = buffer.data();
    long k = 0;
    for (; k + LANES <= size; k += LANES) {
        const floats active = activated(load(x + k), activation);
        store(gated ? active * load(up + k) : active, y + k);
    }
    float last[LANES] = {};
    for (long i = k; i < size; i++) last[i - k] = x[i];
    store(activated(load(last), activation), last);
    for (long i = k; i < size; i++) y[i] = gated ? last[i - k] * up[i] : last[i - k];
    return y;
}

// RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight; LayerNorm takes the mean off first, and adds a bias.
inline void normalise(const float* x, const float* weight, const float* bias, float* y, long size, float eps, bool centred,
                      bool add) {
    float mean = 0;
    if (centred) {
        for (long i = 0; i < size; i++) mean += x[i];
        mean /= size;
    }
    floats squares = {};
    long i = 0;
    for (; i + LANES <= size; i += LANES) {
        const floats away = load(x + i) - mean;
        squares += away * away;
    }
    float total = sum(squares);
    for (; i < size; i++) total += (x[i] - mean) * (x[i] - mean);
    const float scale = 1 / std::sqrt(total / size + eps);
    for (i = 0; i < size; i++) {
        const float normal = (x[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
        y[i] = add ? y[i] + normal : normal;
    }
}
