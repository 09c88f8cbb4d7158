from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from foreserve.errors import ConfigError
from foreserve.pipelines.shapes import depth, fits, hints_of, value_of, words
from foreserve.pipelines.stream import Stream
from foreserve.pipelines.text import Text


class Animal: ...


class Cat(Animal): ...


@pytest.mark.parametrize(
    ("have", "want"),
    [
        (int, int),
        (int, float),
        (Cat, Animal),
        (Any, Stream[int]),
        (Stream[int], Any),
        (Text, str),
        (str, Text),
        (Stream[Text], Stream[str]),
        (Stream[Text], list[str]),
        (Stream[Stream[int]], list[list[int]]),
        (Stream[Stream[int]], Stream[list[int]]),
        (Stream[Cat], Sequence[Animal]),
        (list[int], list[int]),
        (list[Cat], list[Animal]),
        (int, int | None),
        (int | None, int | str | None),
        (Stream[int], list[int] | None),
        (Cat, Awaitable[Animal]),
        (dict[str, int], dict[str, Any]),
        (list[int], list),
    ],
)
def test_what_fits(have: Any, want: Any):
    assert fits(have, want)


@pytest.mark.parametrize(
    ("have", "want"),
    [
        (int, str),
        (Animal, Cat),
        (Stream[int], int),
        (int, Stream[int]),
        (list[int], Stream[int]),
        (Stream[Stream[int]], Stream[int]),
        (Stream[int], list[str]),
        (Text, int),
        (int | None, int),
        (list[int], list[str]),
        (Stream[int], object),
    ],
)
def test_what_does_not(have: Any, want: Any):
    assert not fits(have, want)


def test_levels_values_and_words():
    kind = Stream[Stream[Text]]
    assert depth(kind) == 2
    assert value_of(kind) == list[list[str]]
    assert words(kind) == "Stream[Stream[Text]]"
    assert words(int | None) == "int | None"
    assert words(tuple[str, list[int]]) == "tuple[str, list[int]]"


def test_annotations_that_cannot_be_read_are_told():
    def code(x: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
        ...

    with pytest.raises(ConfigError, match="here: its annotations cannot be read: name 'Nowhere'"):
        hints_of(code, "here")
