"""Native code compiled as other processors would have it, so that what they run is tried here too."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

# Without what only some processors have.
FLAGS = ("-mno-avx512f", "-mno-avx512bf16", "-mno-avx512vnni") if platform.machine() == "x86_64" else ()


def compiled(module: ModuleType) -> Callable[..., Any]:
    """A fixture that lets the tests of a file run twice: with the library of `module` as it is, and as portable."""

    @pytest.fixture(autouse=True, params=["as here", "portable"], scope="module")
    def fixture(request: pytest.FixtureRequest) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            if request.param == "portable":
                patch.setattr(module, "FLAGS", (*module.FLAGS, *FLAGS))
            module.library.cache_clear()
            yield
        module.library.cache_clear()

    return fixture
