"""Texts as the token ids that an encoder reads, its special tokens round them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

from foreserve.elastic.folder import EncoderFacts
from foreserve.errors import BadRequest, ConfigError


class Words:
    """One encoder's tokenizer. Texts that are too long are cut as sentence-transformers cuts them."""

    def __init__(self, folder: Path, facts: EncoderFacts) -> None:
        """Raises ConfigError where there is no usable tokenizer."""
        file = folder / "tokenizer.json"
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(file))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # `tokenizers` raises plain exceptions, or panics
            raise ConfigError(f"{file}: not a usable tokenizer: {error}") from None
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=facts.max_tokens)
        self._facts = facts
        empty = self._tokenizer.encode("").ids
        self._first, self._last = (empty[:1], empty[-1:]) if len(empty) > 1 else ([], [])
        self.vocabulary = int(self._tokenizer.get_vocab_size())

    def of_text(self, text: str, param: str) -> list[int]:
        """The ids of a text. Raises BadRequest for one that is not Unicode."""
        return list(self._tokenizer.encode(self._prepared(text, param)).ids)

    def of_pair(self, one: str, other: str, param: str) -> tuple[list[int], list[int]]:
        """The ids of two texts as one input, and for each id which text it is of."""
        found = self._tokenizer.encode(self._prepared(one, param), self._prepared(other, param))
        return list(found.ids), list(found.type_ids)

    def of_ids(self, ids: list[int], param: str) -> list[int]:
        """Ids that were made elsewhere, with special tokens round them unless they are there. Raises BadRequest."""
        wrong = next((each for each in ids if not 0 <= each < self.vocabulary), None)
        if wrong is not None:
            raise BadRequest(f"token id {wrong} is none of this model; valid: 0 to {self.vocabulary - 1}", param=param)
        if ids[:1] == self._first and ids[-1:] == self._last and len(ids) > 1:
            first, ids = self._first, ids[1:-1]
        else:
            first = self._first
        return [*first, *ids[: self._facts.max_tokens - len(first) - len(self._last)], *self._last]

    def _prepared(self, text: str, param: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(f"the text holds half a surrogate pair at character {error.start}", param=param) from None
        text = text.strip()
        return text.lower() if self._facts.lower_case else text
