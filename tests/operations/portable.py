"""Native code compiled as other processors would have it, so that what they run is tried here too."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

AVX2 = ("-mno-avx512f", "-mno-avx512bf16", "-mno-avx512vnni")
FLAGS = {  # of processors of this kind that have less
    "as here": (),
    **(
        {
            "AVX-512 of the first kind": ("-mno-avx512bf16", "-mno-avx512vnni"),
            "AVX2": AVX2,
            "neither": (*AVX2, "-mno-avx2", "-mno-avx", "-mno-fma", "-mno-f16c"),
        }
        if platform.machine() == "x86_64"
        else {}
    ),
}


def compiled(module: ModuleType) -> Callable[..., Any]:
    """A fixture: the tests of a file run with the library of `module` as it is, and as other processors have it."""

    @pytest.fixture(autouse=True, params=list(FLAGS), scope="module")
    def fixture(request: pytest.FixtureRequest) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "FLAGS", (*module.FLAGS, *FLAGS[request.param]))
            module.library.cache_clear()
            yield
        module.library.cache_clear()

    return fixture
