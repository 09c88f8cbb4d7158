"""Cutting a text that is still growing into pieces: by word, line, sentence, or where a user's function says.

How a text is cut never depends on how it came: any chunking of it gives the same pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

Find = Callable[[str, int], tuple[int, int] | None]
"""`find(text, start)`: begin and end of the first separator at or behind `start` that no later text can change."""

MOST_PIECES = 100_000
LONGEST_PIECE = 65_536

_SPACE = re.compile(r"\s")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*(\s)")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|No|vs|e\.g|i\.e|etc)\.$")
_MARKER = re.compile(r"^(?:[-*•]\s+|\(?\d{1,3}[.):]\s*)+")
_END_MARKS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>")


class Piece(NamedTuple):
    """More of piece `number`, counted from 0; with `last` it is whole, which is never empty, though `text` may be."""

    number: int
    text: str
    last: bool


@dataclass(frozen=True)
class Splitter:
    """Where a text is cut, and what is kept of each piece: the separators and the space around a piece never are.

    `live` pieces are handed on while they grow. Those that are `clean` (no list markers such as "1." or "-", and
    nothing behind a model's end mark) or `unique` are handed on whole. At most `most` pieces are made, the rest of the
    text is left out, and of each at most its first `longest` characters.
    """

    name: str
    find: Find
    live: bool = False
    clean: bool = False
    unique: bool = False
    most: int = MOST_PIECES
    longest: int = LONGEST_PIECE

    def parser(self) -> Parser:
        """One for each text."""
        return Parser(self)


def _space(text: str, start: int) -> tuple[int, int] | None:
    found = _SPACE.search(text, start)
    return None if found is None else found.span()


def _newline(text: str, start: int) -> tuple[int, int] | None:
    at = text.find("\n", start)
    return None if at < 0 else (at, at + 1)


def _sentence_end(text: str, start: int) -> tuple[int, int] | None:
    # What ends a sentence may lie before `start`: only the space behind it has not been looked at.
    for found in _SENTENCE_END.finditer(text, max(0, start - 16)):
        if found.start(1) >= start and not _ABBREVIATION.search(text[: found.start(1)][-8:]):
            return found.span(1)
    return None


words = Splitter("words", _space, live=False)
"""At white space."""

lines = Splitter("lines", _newline, live=True)
"""At line ends; empty lines are none."""

sentences = Splitter("sentences", _sentence_end, live=True)
"""Behind a full stop, question or exclamation mark that white space follows, but for a few abbreviations."""

items = Splitter("items", _newline, clean=True, unique=True)
"""One item a line, as a model lists them: without list markers, each only once."""


def split_at(separator: str, *, clean: bool = False, unique: bool = False) -> Splitter:
    """At a text of at least one character, such as `"</claim>"`."""
    if not separator:
        raise ValueError("split_at(...): the separator is empty; it must have at least one character")

    def find(text: str, start: int) -> tuple[int, int] | None:
        # A separator may have begun in what was looked at before.
        found = text.find(separator, max(0, start - len(separator) + 1))
        return None if found < 0 else (found, found + len(separator))

    return Splitter(f"at {separator!r}", find, clean=clean, unique=unique)


class Parser:
    """Cuts one text as it grows."""

    def __init__(self, splitter: Splitter) -> None:
        self._splitter = splitter
        self._live = splitter.live and not splitter.clean and not splitter.unique
        self._text = ""  # of the piece that is not whole yet, without the space before it
        self._looked = 0  # how far separators have been looked for in it
        self._sent = 0  # how much of it was handed on
        self._seen: set[str] = set()
        self._closed = False
        self.count = 0
        """Of the pieces that are whole."""

    def feed(self, delta: str) -> list[Piece]:
        """`delta` is new text alone. Returns what it adds to pieces."""
        pieces: list[Piece] = []
        find = self._splitter.find
        self._text += delta
        while (found := find(self._text, self._looked)) is not None:
            begin, end = found
            self._whole(self._text[:begin], pieces)
            self._text = self._text[end:]
            self._looked = 0
        if not self._sent:
            self._text = self._text.lstrip()
        self._looked = len(self._text)
        if self._live and self.count < self._splitter.most:
            self._grown(pieces)
        return pieces

    def close(self) -> list[Piece]:
        """The text has ended: what is left of it is a piece."""
        pieces: list[Piece] = []
        if not self._closed:
            self._closed = True
            self._whole(self._text, pieces)
            self._text = ""
        return pieces

    def _grown(self, pieces: list[Piece]) -> None:
        """Hand on what the coming text cannot take back: all but the space at the end."""
        kept = len(self._text[: self._splitter.longest].rstrip())
        if kept > self._sent:
            pieces.append(Piece(self.count, self._text[self._sent : kept], False))
            self._sent = kept

    def _whole(self, text: str, pieces: list[Piece]) -> None:
        sent, self._sent = self._sent, 0
        if self.count >= self._splitter.most:
            return
        if sent:
            pieces.append(Piece(self.count, text[: self._splitter.longest].rstrip()[sent:], True))
            self.count += 1
            return
        if self._splitter.clean:
            text = _cleaned(text)
        text = text.strip()[: self._splitter.longest].rstrip()
        if not text or (self._splitter.unique and text in self._seen):
            return
        if self._splitter.unique:
            self._seen.add(text)
        pieces.append(Piece(self.count, text, True))
        self.count += 1


def _cleaned(text: str) -> str:
    for mark in _END_MARKS:
        text = text.partition(mark)[0]
    return _MARKER.sub("", text.strip())


def pieces_of(text: str, splitter: Splitter) -> list[str]:
    """The pieces of a whole text."""
    parser, found = splitter.parser(), dict[int, str]()
    for piece in [*parser.feed(text), *parser.close()]:
        found[piece.number] = found.get(piece.number, "") + piece.text
    return list(found.values())
