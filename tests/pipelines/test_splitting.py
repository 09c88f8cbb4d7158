from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve.pipelines.splitting import Splitter, items, lines, pieces_of, sentences, split_at, words

SPLITTERS = [words, lines, sentences, items, split_at("--"), split_at("</c>", unique=True)]
TEXT = st.text(alphabet='ab .!\n-<>/c"1', max_size=60)


def cut(chunks: list[str], splitter: Splitter) -> list[str]:
    parser, found = splitter.parser(), dict[int, str]()
    for piece in [piece for chunk in chunks for piece in parser.feed(chunk)] + parser.close():
        assert piece.text or (piece.last and found[piece.number])
        found[piece.number] = found.get(piece.number, "") + piece.text
    assert parser.count == len(found)
    return list(found.values())


@pytest.mark.parametrize(
    ("chunks", "pieces"),
    [
        (["claim A", "\n\n", "claim B", "\n", "claim C"], ["claim A", "claim B", "claim C"]),
        (["claim A\nclaim B\n"], ["claim A", "claim B"]),
        ([""], []),
        (["\n\n \n"], []),
    ],
)
def test_vectors_of_the_specification(chunks: list[str], pieces: list[str]):
    assert cut(chunks, lines) == pieces


@pytest.mark.parametrize("splitter", SPLITTERS, ids=lambda splitter: splitter.name)
@given(text=TEXT, cuts=st.lists(st.integers(0, 60), max_size=8))
def test_pieces_do_not_depend_on_how_the_text_came(splitter: Splitter, text: str, cuts: list[int]):
    places = [0, *sorted(cuts), len(text)]
    chunks = [text[a:b] for a, b in pairwise(places)]
    assert cut(chunks, splitter) == cut([text], splitter) == cut(list(text), splitter) == pieces_of(text, splitter)


@given(TEXT)
def test_nothing_but_separators_and_space_is_lost(text: str):
    assert "".join(pieces_of(text, words)) == "".join(text.split())
    assert [piece for line in text.split("\n") if (piece := line.strip())] == pieces_of(text, lines)


def test_sentences_end_where_space_follows_but_for_abbreviations():
    text = 'Dr. Who saw 3.5 stars, e.g. Sol. "Bright!" he said. J. Doe agreed'
    assert pieces_of(text, sentences) == [
        "Dr. Who saw 3.5 stars, e.g. Sol.", '"Bright!"', "he said.", "J. Doe agreed"
    ]  # fmt: skip


def test_items_lose_their_markers_and_come_once():
    text = "1. Paris is big\n- Rome is old\n2) Paris is big\n(3) 1990 was a year<|im_end|>junk\n<|im_end|>"
    assert pieces_of(text, items) == ["Paris is big", "Rome is old", "1990 was a year"]


def test_a_line_is_handed_on_while_it_grows():
    parser = lines.parser()
    assert parser.feed("  he") == [(0, "he", False)]
    assert parser.feed("llo ") == [(0, "llo", False)]
    assert parser.feed("you\nnext") == [(0, " you", True), (1, "next", False)]
    assert parser.close() == [(1, "", True)]
    assert parser.close() == []


def test_number_and_length_are_bounded():
    splitter = Splitter("few", lines.find, live=True, most=2, longest=3)
    assert pieces_of("abcdef\ngh\nij", splitter) == ["abc", "gh"]
    assert cut(list("abcdef\ngh\nij"), splitter) == ["abc", "gh"]


def test_a_user_cuts_where_a_function_says():
    def at_digits(text: str, start: int) -> tuple[int, int] | None:
        return next(((i, i + 1) for i in range(start, len(text)) if text[i].isdigit()), None)

    assert cut(["ab1c", "d2", "3e"], Splitter("digits", at_digits)) == ["ab", "cd", "e"]


def test_an_empty_separator_is_refused():
    with pytest.raises(ValueError, match="separator is empty"):
        split_at("")
