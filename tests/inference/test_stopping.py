"""A stop string never leaks, however the text is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pellucid.inference.stopping import StopText

letters = st.text("ab", max_size=30)
stop_lists = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def cut_at_first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The oracle, letter by letter: the first stop string that is complete ends the text, the longest of several."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            longest = max(ended, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(letters), stop_lists)
def test_pieces_joined_are_the_text_before_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    watch = StopText(stops)
    shown = ""
    expected, found = cut_at_first_stop("".join(pieces), stops)
    for piece in pieces:
        shown += watch.push(piece)
        assert expected.startswith(shown)  # at no moment is anything out that must not be
    assert (shown + watch.flush(), watch.found) == (expected, found)


@given(letters)
def test_nothing_is_held_back_without_need(text: str) -> None:
    assert StopText([]).push(text) == text
    assert StopText(["c"]).push(text) == text
    assert StopText(["abc"]).push("xxab") == "xx"
    assert StopText(["abc"]).push("xxabd") == "xxabd"


@given(st.text("abc", max_size=60), st.lists(st.text("abc", min_size=1, max_size=12), max_size=200))
def test_many_stop_strings_are_found_as_a_few_are(text: str, stops: list[str]) -> None:
    watch = StopText(stops)
    shown = "".join(map(watch.push, text)) + watch.flush()
    assert (shown, watch.found) == cut_at_first_stop(text, stops)


def test_text_that_almost_stops_all_the_time_with_a_thousand_stop_strings() -> None:
    """Looking for each string anew at each letter would take minutes."""
    watch = StopText(["a" * 50 + f"{number}!" for number in range(1000)])
    shown = "".join(watch.push("a" * 100) for _ in range(2000))
    assert len(shown) == 200_000 - 50 and watch.found is None
    assert watch.push("7!b") == "" and watch.found == "a" * 50 + "7!"
