"""Real English texts that come with the package. ORIGIN.md beside this file says whence, and that they are free."""

from __future__ import annotations

import lzma
from importlib.resources import files

from pellucid.errors import InputError, did_you_mean

TEXTS = {"state-of-the-union": "state_of_the_union.txt.xz"}


def read(name: str) -> str:
    """The whole text `name`, decompressed (3.9 MB for "state-of-the-union", in about a tenth of a second).

    Raises `InputError` with the names that there are.
    """
    if name not in TEXTS:
        raise InputError(f"there is no text {name!r}{did_you_mean(name, TEXTS)}; there are {', '.join(TEXTS)}")
    return lzma.decompress((files(__package__) / TEXTS[name]).read_bytes()).decode()
