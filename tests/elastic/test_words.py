from pathlib import Path

import pytest

from foreserve.elastic.folder import read_folder
from foreserve.elastic.words import Words
from foreserve.errors import BadRequest, ConfigError


@pytest.fixture
def words(sentences: Path) -> Words:
    return Words(sentences, read_folder(sentences))


def test_texts_get_their_special_tokens_and_are_cut_at_the_models_length(words: Words) -> None:
    assert words.of_text(" a b ", "input") == [2, 4, 5, 3]
    assert words.of_text("", "input") == [2, 3]
    long = words.of_text("a " * 100, "input")
    assert len(long) == 20
    assert (long[0], long[-1]) == (2, 3)


def test_pairs_say_which_text_a_token_is_of(words: Words) -> None:
    assert words.of_pair("a", "b c", "documents") == ([2, 4, 3, 5, 6, 3], [0, 0, 0, 1, 1, 1])
    ids, types = words.of_pair("a " * 50, "b " * 50, "documents")
    assert len(ids) == len(types) == 20


def test_token_ids_get_special_tokens_unless_they_are_there(words: Words) -> None:
    assert words.of_ids([4, 5], "input") == [2, 4, 5, 3]
    assert words.of_ids([2, 4, 5, 3], "input") == [2, 4, 5, 3]
    assert words.of_ids([4] * 50, "input") == [2, *[4] * 18, 3]
    with pytest.raises(BadRequest, match="token id 99 is none"):
        words.of_ids([4, 99], "input")


def test_what_is_no_text_is_refused(words: Words, tmp_path: Path, sentences: Path) -> None:
    with pytest.raises(BadRequest, match="surrogate"):
        words.of_text("a\ud800", "input")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a usable tokenizer"):
        Words(tmp_path, read_folder(sentences))
