"""What is read of a machine, what is measured on it, how a choice is made, kept and overridden (promises E3, E4)."""

from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.errors import InputError
from pellucid.operations import ceilings, hardware, machine
from pellucid.operations.ceilings import Ceilings, Trial

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz
flags\t\t: fpu sse4_2 fma avx2 f16c

processor\t: 1
model name\t: second
flags\t\t: avx512f
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm asimddp i8mm bf16 sve
CPU implementer\t: 0x41
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, no variable that decides, and two cores with two threads."""
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    for name in ("PELLUCID_PRECISION", "PELLUCID_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hardware, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return tmp_path


class Timings:
    """Stands for `time_requests` on an imagined machine; counts how often it is asked."""

    def __init__(self, float32: float, bfloat16: float, alone: bool = True) -> None:
        self.trial = Trial({"float32": float32, "bfloat16": bfloat16}, alone)
        self.asked = 0

    def __call__(self, precisions: object) -> Trial:
        self.asked += 1
        return self.trial


def with_timings(patch: pytest.MonkeyPatch, *values: float, alone: bool = True) -> Timings:
    timings = Timings(*values, alone=alone)
    patch.setattr(hardware, "time_requests", timings)
    return timings


# What is read


@pytest.mark.parametrize(
    ("cpuinfo", "name", "instructions"),
    [
        (X86, "Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz", ("AVX2", "FMA", "F16C")),
        (ARM, None, ("NEON", "NEON-DOT", "ARM-BF16", "ARM-I8MM", "SVE")),
        ("", None, ()),
    ],
)
def test_processor(cpuinfo: str, name: str | None, instructions: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    seen, found = machine.read_processor(tmp_path)
    assert found == instructions
    assert seen == name if name else seen


def test_a_system_without_proc(tmp_path: Path) -> None:
    name, _ = machine.read_processor(tmp_path)
    assert name


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 64), ("150000 100000", 2), ("1000 100000", 1), ("?", 64)])
def test_a_container_has_the_cores_of_its_quota(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64), raising=False)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(quota)
    assert machine.usable_cores(tmp_path) == cores


@pytest.mark.parametrize(("limit", "expected"), [("max", (1000, 600)), (str(500 * 1024), (500, 400))])
def test_a_container_has_the_memory_of_its_limit(limit: str, expected: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\nHugePages: 0\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(limit)
    (tmp_path / "sys/fs/cgroup/memory.current").write_text(str(100 * 1024))
    assert machine.read_memory(tmp_path) == tuple(1024 * size for size in expected)


def test_this_machine() -> None:
    seen = hardware.features()
    assert seen.processor and seen.torch_version == torch.__version__
    assert seen.cores >= 1 and seen.threads == torch.get_num_threads()
    assert 0 < seen.memory_available <= seen.memory_total


def test_the_cache_folder_follows_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_CACHE", "/a")
    assert machine.cache_folder() == Path("/a")
    monkeypatch.delenv("PELLUCID_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert machine.cache_folder() == Path("/b/pellucid")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert machine.cache_folder() == Path.home() / ".cache/pellucid"


# What is measured


def test_ceilings_are_rates() -> None:
    measured = ceilings.measure_ceilings(("float32", "bfloat16"))
    assert set(measured.matmul) == {"float32", "bfloat16"}
    assert all(0 < rate < math.inf for rate in (*measured.matmul.values(), measured.memory_read))


def test_the_rate_counts_two_operations_for_each_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a product that takes one second, the rate is 2 N^3 / 1e9 GFLOP/s, or a sixteenth of it for a slice."""
    monkeypatch.setattr(ceilings, "fastest", lambda function, seconds: 1.0 if seconds else 0.001)
    assert ceilings.matmul_rate(torch.float32) == pytest.approx(2 * 1024**3 / 1e9)
    monkeypatch.setattr(ceilings, "fastest", lambda function, seconds: 1.0)
    assert ceilings.matmul_rate(torch.float32) == pytest.approx(2 * 1024**3 / 16 / 1e9)


def test_fastest_takes_the_shortest_of_at_least_two(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 5.0, 7.0, 7.0])  # start, then (before, after) of each run, end
    monkeypatch.setattr(ceilings.time, "perf_counter", lambda: next(clock))
    assert ceilings.fastest(lambda: None, seconds=0) == 2.0


def test_a_trial_has_every_precision() -> None:
    trial = ceilings.time_requests(("float32", "bfloat16"))
    assert set(trial.seconds) == {"float32", "bfloat16"}
    assert all(0 < seconds < math.inf for seconds in trial.seconds.values())


@pytest.mark.parametrize(("used", "alone"), [(2.0, True), (1.0, False)])
def test_a_trial_knows_whether_it_was_alone(used: float, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads for one second have two seconds of the processor, unless somebody else takes some of them."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(ceilings, "fastest_pass", lambda tokens, layers: 0.5)
    for clock, values in (("perf_counter", (10.0, 11.0)), ("process_time", (3.0, 3.0 + used))):
        times = iter(values)
        monkeypatch.setattr(ceilings.time, clock, lambda times=times: next(times))
    trial = ceilings.time_requests(("float32",))
    assert trial == Trial({"float32": 0.5 + 128 * 0.5}, alone)


def test_describe_names_machine_and_ceilings() -> None:
    said = hardware.describe(Ceilings({"float32": 101.4, "bfloat16": 202.6}, 33.3))
    assert machine.read_processor()[0] in said and torch.__version__ in said
    assert "float32 101, bfloat16 203 GFLOP/s; memory read 33 GB/s" in said


# What is chosen


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [(2.0, 1.0, "bfloat16"), (1.0, 4.0, "float32"), (1.05, 1.0, "float32"), (1.2, 1.0, "bfloat16")],
)
def test_precision_is_the_faster_one(
    float32: float, bfloat16: float, chosen: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_timings(monkeypatch, float32, bfloat16)
    precision = hardware.best_precision()
    assert (precision.name, precision.dtype) == (chosen, getattr(torch, chosen))
    assert f"{float32:.2f} s" in precision.reason and f"{bfloat16:.2f} s" in precision.reason


def test_a_choice_is_remembered_until_it_is_remeasured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timings = with_timings(monkeypatch, 1.0, 4.0)
    assert "measured" in hardware.best_precision().reason
    assert "remembered" in hardware.best_precision("auto").reason
    assert timings.asked == 1
    timings = with_timings(monkeypatch, 4.0, 1.0)
    assert hardware.best_precision().name == "float32"
    assert hardware.best_precision(remeasure=True).name == "bfloat16"
    assert hardware.best_precision().name == "bfloat16"
    assert timings.asked == 1


@pytest.mark.parametrize("change", ["threads", "cores", "torch", "processor"])
def test_another_machine_is_measured_anew(change: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_timings(monkeypatch, 1.0, 4.0)
    hardware.best_precision()
    match change:
        case "threads":
            monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        case "cores":
            monkeypatch.setattr(hardware, "usable_cores", lambda: 1)
        case "torch":
            monkeypatch.setattr(torch, "__version__", "9.9")
        case "processor":
            monkeypatch.setattr(hardware, "read_processor", lambda: ("another", ()))
    timings = with_timings(monkeypatch, 4.0, 1.0)
    assert hardware.best_precision().name == "bfloat16"
    assert timings.asked == 1


def test_what_a_busy_machine_measured_is_soon_forgotten(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1e9
    monkeypatch.setattr(hardware.time, "time", lambda: now)
    timings = with_timings(monkeypatch, 4.0, 1.0, alone=False)
    for _ in range(2):
        precision = hardware.best_precision()
        assert precision.name == "bfloat16" and "beside other work" in precision.reason
    assert timings.asked == 1
    now += 601
    timings = with_timings(monkeypatch, 1.0, 4.0)
    assert hardware.best_precision().name == "float32"
    now += 601
    assert "remembered" in hardware.best_precision().reason
    assert timings.asked == 1


@given(damage=st.binary() | st.sampled_from([b"[]", b"null", b"{", b'{"key": 3}', b"\xff\xfe"]))
def test_a_damaged_file_is_measured_over(damage: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("PELLUCID_CACHE", str(folder))
        (folder / "measured.json").write_bytes(damage)
        assert hardware.recall("key", ["float32"]) is None
        assert hardware.remember("key", Trial({"float32": 1.5}, alone=True))
        assert hardware.recall("key", ["float32"]) == Trial({"float32": 1.5}, alone=True)


@pytest.mark.parametrize("damage", [{}, {"seconds": {}}, {"seconds": 3}, {"alone": None, "at": "x"}])
def test_a_damaged_entry_is_measured_over(
    damage: dict[str, object], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_timings(monkeypatch, 1.0, 4.0)
    hardware.best_precision()
    file = cache / "measured.json"
    ((key, entry),) = json.loads(file.read_text()).items()
    file.write_text(json.dumps({key: {**entry, **damage} if damage else {}}))
    timings = with_timings(monkeypatch, 4.0, 1.0)
    assert hardware.best_precision().name == "bfloat16"
    assert timings.asked == 1


def test_an_unwritable_cache_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").touch()
    monkeypatch.setenv("PELLUCID_CACHE", str(cache / "file"))
    with_timings(monkeypatch, 4.0, 1.0)
    precision = hardware.best_precision()
    assert precision.name == "bfloat16" and f"{cache / 'file'} cannot be written" in precision.reason


def remember_often(folder: str, worker: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELLUCID_CACHE", folder)
        for number in range(100):
            assert hardware.remember(f"{worker}-{number}", Trial({"float32": 1.0}, alone=True))


def test_readers_never_see_half_a_file(cache: Path) -> None:
    """Two processes write while this one reads: what it reads is always whole."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=remember_often, args=(str(cache), worker)) for worker in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if (cache / "measured.json").exists():
            assert isinstance(json.loads((cache / "measured.json").read_text()), dict)
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [file.name for file in cache.iterdir()] == ["measured.json"]


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_precision_can_be_overridden(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timings = with_timings(monkeypatch, 1.0, 1.0)
    assert hardware.best_precision(name).name == name
    monkeypatch.setenv("PELLUCID_PRECISION", name)
    precision = hardware.best_precision()
    assert precision.name == name and "PELLUCID_PRECISION" in precision.reason
    assert hardware.best_precision("float32").reason == "float32, asked for"  # the flag is nearer than the variable
    assert timings.asked == 0


def test_a_wrong_precision_says_what_there_is(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = "auto, float32, bfloat16, float16"
    with pytest.raises(InputError, match=rf"'bfloat1' \(asked for\) is none of {allowed} \(did you mean 'bfloat16'"):
        hardware.best_precision("bfloat1")
    monkeypatch.setenv("PELLUCID_PRECISION", "fp8")
    with pytest.raises(InputError, match="set by PELLUCID_PRECISION"):
        hardware.best_precision()


def thread_trials(patch: pytest.MonkeyPatch, seconds: dict[int, float], alone: bool = True) -> None:
    trial = Trial({str(count): took for count, took in seconds.items()}, alone)
    patch.setattr(hardware, "time_threads", lambda counts: trial)


@pytest.mark.parametrize(
    ("one", "two", "alone", "chosen"),
    [(2.0, 1.0, True, 2), (1.0, 2.0, True, 1), (1.0, 1.05, True, 2), (1.0, 2.0, False, 2)],
)
def test_threads_are_measured(
    one: float, two: float, alone: bool, chosen: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own two stay unless one is clearly faster, and always when the measurement was disturbed."""
    thread_trials(monkeypatch, {1: one, 2: two}, alone)
    threads = hardware.best_threads()
    assert threads.count == chosen and f"{one:.2f} s" in threads.reason and f"{two:.2f} s" in threads.reason


def test_threads_can_be_overridden(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert hardware.best_threads().reason == "2, set by OMP_NUM_THREADS"
    monkeypatch.setenv("PELLUCID_THREADS", "7")
    assert hardware.best_threads().count == 7
    for wrong in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv("PELLUCID_THREADS", wrong)
        with pytest.raises(InputError, match="positive whole number"):
            hardware.best_threads()


def test_timing_threads_leaves_torch_as_it_was() -> None:
    before = torch.get_num_threads()
    trial = hardware.time_threads([1])
    assert set(trial.seconds) == {"1"} and torch.get_num_threads() == before


def test_use_best_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("PELLUCID_THREADS", "1")
    try:
        assert hardware.use_best_threads().count == 1
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
