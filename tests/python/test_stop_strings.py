"""Stop strings: found across pieces, never shown in part, and independent of how the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bee_integrations.text.stop_strings import StopStrings

# A small alphabet, so that stop strings and their beginnings are everywhere.
letters = st.text("ab ", max_size=40)
stop_lists = st.lists(st.text("ab ", min_size=1, max_size=5), min_size=1, max_size=4)


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    scanner = StopStrings(stops)
    shown = ""
    for piece in pieces:
        text, stop_text = scanner.push(piece)
        shown += text
        if stop_text is not None:
            return shown, stop_text
    return shown + scanner.flush(), None


def by_definition(stops: list[str], text: str) -> tuple[str, str | None]:
    """The stop string that is complete first, the longest of those that end there."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(stop_lists, letters, st.data())
def test_any_cut_gives_the_definition(stops: list[str], text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run(stops, pieces) == by_definition(stops, text)


@given(stop_lists, letters)
def test_nothing_shown_is_taken_back_and_little_is_held(stops: list[str], text: str) -> None:
    scanner = StopStrings(stops)
    shown = ""
    for read, character in enumerate(text, start=1):
        piece, stop_text = scanner.push(character)
        shown += piece
        assert text.startswith(shown)
        if stop_text is not None:
            return
        assert read - len(shown) < max(map(len, stops))


def test_held_text_is_released_as_soon_as_it_cannot_match() -> None:
    scanner = StopStrings(["\nUser:"])
    assert scanner.push("Hello\nUse") == ("Hello", None)
    assert scanner.push("d cars") == ("\nUsed cars", None)
    assert scanner.push("\nUser: hi") == ("", "\nUser:")


def test_without_stop_strings_text_passes() -> None:
    scanner = StopStrings([])
    assert scanner.push("abc") == ("abc", None)
    assert scanner.flush() == ""


def test_what_is_held_at_the_end_is_text() -> None:
    scanner = StopStrings(["END"])
    assert scanner.push("the EN") == ("the ", None)
    assert scanner.flush() == "EN"
    assert scanner.flush() == ""


def test_empty_stop_strings_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""])
