"""What holds for every test: no outside connection, fixed seeds, a cache folder of its own; and the real model."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from pellucid.models.decoder import Decoder
    from pellucid.tokenizer.tokenizer import Tokenizer

OFFLINE = str(Path(__file__).parent / "offline")
sys.path.insert(0, OFFLINE)
sys.modules.pop("sitecustomize", None)  # Python may have imported the system's own

import sitecustomize as offline  # noqa: E402

# The same examples in every run: a change is judged by what it changed. --hypothesis-profile=explore goes further.
hypothesis.settings.register_profile("pellucid", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True, max_examples=1000)
hypothesis.settings.load_profile("pellucid")


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Subprocesses are offline too, nothing lands in the user's cache, no variable of the user's decides a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [OFFLINE, os.environ.get("PYTHONPATH")])))
        patch.setenv("PELLUCID_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("PELLUCID_PRECISION", raising=False)
        patch.delenv("PELLUCID_NATIVE", raising=False)
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small products are faster so, and the same in every process."""
    import torch

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def stays_here_and_repeats() -> Iterator[None]:
    """Seeds are fixed before each test; after it, a refused connection fails it even if the code hid the refusal."""
    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    offline.attempts.clear()
    yield
    assert not offline.attempts, f"tried to reach {offline.attempts}"


@pytest.fixture(scope="session")
def smollm2() -> tuple[Decoder, Tokenizer]:
    """SmolLM2-135M-Instruct, loaded once in float32: (model, tokenizer). Tests leave both as they are."""
    import pellucid

    return pellucid.load("smollm2", dtype="float32")
