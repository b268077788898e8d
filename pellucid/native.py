"""Native code: a C++ file of the package, compiled at first use, kept in the cache folder, loaded by `ctypes`.

It is speed only. Where there is no compiler, where compiling fails, or where `PELLUCID_NATIVE=0` switches it off,
`load` gives None, the Python path beneath does the same work, and `why_not` says why (`pellucid doctor` shows it).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
VARIABLES = ("PELLUCID_NATIVE", "CXX", "PATH", "PELLUCID_CACHE", "XDG_CACHE_HOME", "HOME")
INSTRUCTIONS = {  # a compiler's macros -> instruction sets
    "__AVX2__": "AVX2",
    "__FMA__": "FMA",
    "__AVXVNNI__": "AVX-VNNI",
    "__AVX512F__": "AVX512F",
    "__AVX512BW__": "AVX512BW",
    "__AVX512VNNI__": "AVX512-VNNI",
    "__AVX512BF16__": "AVX512-BF16",
    "__ARM_NEON": "NEON",
    "__ARM_FEATURE_DOTPROD": "NEON-DOT",
    "__ARM_FEATURE_BF16_VECTOR_ARITHMETIC": "ARM-BF16",
    "__ARM_FEATURE_MATMUL_INT8": "ARM-I8MM",
    "__ARM_FEATURE_SVE": "SVE",
}
PATIENCE = 120  # seconds for one call of the compiler; a second or two is usual


@dataclass(frozen=True)
class Built:
    """What became of a source: the library, or None and the reason; and what the compiler calls itself."""

    library: ctypes.CDLL | None
    reason: str | None = None
    compiler: str = ""


class _Failed(Exception):
    """Compiling or loading did not work; the message is the reason."""


def load(source: Path, *flags: str) -> ctypes.CDLL | None:
    """The library compiled from `source` and the headers beside it, or None. Compiles at first use; never raises.

    flags: for the compiler, beside FLAGS.
    """
    return built(source, *flags).library


def why_not(source: Path, *flags: str) -> str | None:
    """Why `load` gives None for this source, or None if it gives the library."""
    return built(source, *flags).reason


def built(source: Path, *flags: str) -> Built:
    """`load` and `why_not` in one. Asked anew only when a variable that decides it has changed."""
    return _built(source, flags, tuple(os.environ.get(name, "") for name in VARIABLES))


def instructions() -> tuple[str, ...]:
    """The instruction sets that our flags let the compiler use on this processor; none where there is no compiler."""
    try:
        compiler = _find(os.environ.get("CXX", ""), os.environ.get("PATH", ""))
        macros = set(_run([compiler, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull]).split())
    except _Failed:
        return ()
    return tuple(name for macro, name in INSTRUCTIONS.items() if macro in macros)


def cache_folder() -> Path:
    """Where what was measured or compiled is kept: `PELLUCID_CACHE`, or `pellucid` in the user's cache folder."""
    chosen = os.environ.get("PELLUCID_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pellucid"


@cache
def _built(source: Path, flags: tuple[str, ...], variables: tuple[str, ...]) -> Built:
    switch, cxx, path, *_ = variables
    if switch == "0":
        return Built(None, "PELLUCID_NATIVE=0 switches it off")
    try:
        compiler = _find(cxx, path)
        version = _run([compiler, "--version"]).partition("\n")[0].strip()
        command = [compiler, *FLAGS, *flags]
        library = cache_folder() / f"{source.stem}-{_fingerprint(source, version, command)}.so"
        return Built(_open(library) or _compile(command, source, library), compiler=version)
    except _Failed as failure:
        return Built(None, str(failure))
    except (OSError, RuntimeError) as error:  # a folder that cannot be written, a user without a home
        return Built(None, str(error))


def _find(cxx: str, path: str) -> str:
    for name in (cxx,) if cxx else COMPILERS:
        if found := shutil.which(name, path=path):
            return found
    raise _Failed(f"CXX={cxx} is not on the PATH" if cxx else f"there is no compiler ({', '.join(COMPILERS)})")


def _run(command: list[str]) -> str:
    """What a command prints. Raises _Failed with the first line that speaks of an error, or the last line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Failed(f"{command[0]} does not run: {error}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing said"]
        told = next((line for line in said if "error" in line.lower()), said[-1])
        raise _Failed(f"{command[0]} failed with status {done.returncode}: {told.strip()}")
    return done.stdout


def _fingerprint(source: Path, version: str, command: list[str]) -> str:
    """A library is used again only for the same source, compiler, flags and processor."""
    parts = [file.read_bytes() for file in (source, *sorted(source.parent.glob("*.h")))]
    parts += [version.encode(), " ".join(command).encode(), _processor().encode()]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:20]


def _processor() -> str:
    """What `-march=native` depends on: the processor's name and its instruction sets."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    with cpuinfo.open(errors="replace") as lines:
        first = {line.split(":")[0].strip(): line for line in takewhile(str.strip, lines)}  # of the first core
    return platform.machine() + "".join(first.get(name, "") for name in wanted)


def _open(library: Path) -> ctypes.CDLL | None:
    """The library, if it is there and whole. One that was cut short could end the process when it is mapped."""
    with contextlib.suppress(OSError):
        if library.with_suffix(".sha256").read_bytes() == _digest(library):
            return ctypes.CDLL(str(library))
    return None


def _digest(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).hexdigest().encode()


def _compile(command: list[str], source: Path, library: Path) -> ctypes.CDLL:
    """Several processes may do this at once: each writes files of its own and renames them."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{source.stem}-", dir=library.parent) as folder:
        compiled, digest = Path(folder) / library.name, Path(folder) / "sha256"
        _run([*command, "-o", str(compiled), str(source)])
        digest.write_bytes(_digest(compiled))
        compiled.replace(library)
        digest.replace(library.with_suffix(".sha256"))
    return ctypes.CDLL(str(library))
