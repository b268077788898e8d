"""The texts that come with the package are the ones that ORIGIN.md describes."""

import hashlib
import re
from importlib.resources import files

import pytest

from pellucid.data import texts
from pellucid.errors import InputError


def test_the_text_is_the_one_that_its_origin_describes():
    text = texts.read("state-of-the-union")
    origin = (files("pellucid.data.texts") / "ORIGIN.md").read_text()
    assert len(text.encode()) == 3_854_825 and "3,854,825 bytes" in origin
    assert hashlib.sha256(text.encode()).hexdigest() in origin


def test_it_holds_every_address():
    titles = re.findall(r"^The State of the Union, (\d{4}): (.+)$", texts.read("state-of-the-union"), re.MULTILINE)
    years = [int(year) for year, _ in titles]
    assert len(titles) == 110 and years == sorted(years)
    assert set(range(1913, 2022)) - set(years) == {1933}


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'state-of-the-union'"):
        texts.read("state-of-union")
