"""Text to token ids and back, as a gateway does it: no torch, no transformers, and text given out as tokens come.

Decoding works on the bytes that each token stands for, so that a piece of text is given out as soon as its characters
are whole, in time linear in the length of the answer. What was given out piece by piece is exactly `decode` of all.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import tokenizers

from foreserve.errors import BadRequest, ConfigError
from foreserve.models.prepare import PreparedModel

LONG_CHARS: Final = 4096
"""Texts longer than this take milliseconds to encode."""

CONTEXT_IDS: Final = 8
"""Ids kept before new ones where only the tokenizer itself knows how neighbours join (see `_Joined`)."""


class Tokenizer:
    """One model's tokenizer. Safe to share between threads once made."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._tokenizer = _read(file)
        self._special = frozenset(
            index for index, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        )

    @classmethod
    def load(cls, prepared: PreparedModel) -> Tokenizer:
        """The tokenizer of a prepared model. Raises ConfigError where its file is not usable."""
        return cls(prepared.folder / "tokenizer.json")

    @property
    def vocab_size(self) -> int:
        """Ids there are, added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str, *, specials: bool = True, bos: bool = False) -> list[int]:
        """The ids of `text`.

        With `specials` the text of special tokens becomes those tokens, as llama.cpp and transformers do for a
        rendered chat template; without, it is text like any other. With `bos` the beginning (and end) tokens that the
        model wants round a plain prompt are added; a chat template writes its own. Raises BadRequest for text that
        is not Unicode (half a surrogate pair, as JSON can bring it).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(f"the text holds half a surrogate pair at character {error.start}") from None
        tokenizer = self._tokenizer if specials else self._literal
        if len(text) > LONG_CHARS:
            # This call lets other threads run meanwhile; the plain one holds the interpreter for all its milliseconds.
            return list(tokenizer.encode_batch_fast([text], add_special_tokens=bos)[0].ids)
        return list(tokenizer.encode(text, add_special_tokens=bos).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens and unknown ids left out; bytes that are not UTF-8 become U+FFFD."""
        detokenizer = self.detokenizer()
        return detokenizer.feed(ids) + detokenizer.flush()

    def detokenizer(self) -> Detokenizer:
        """A fresh one, for one answer."""
        return Detokenizer(self._pieces())

    @cached_property
    def _literal(self) -> Any:
        tokenizer = _read(self._file)
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def _pieces(self) -> Callable[[], _Pieces]:
        return _pieces_of(self._tokenizer, self._special)


class Detokenizer:
    """The text of one answer as its tokens come. Holds back what is not a whole character yet."""

    def __init__(self, pieces: _Pieces) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        """The text that became whole with `ids`; often empty."""
        return self._decoder.decode(b"".join([self._pieces.bytes_of(index) for index in ids]))

    def flush(self) -> str:
        """What was held back, its incomplete bytes as U+FFFD. The answer has ended; feed nothing after it."""
        return self._decoder.decode(b"", final=True)


class _Pieces:
    """What each id adds to the text, in bytes. May remember what came before: one for each answer."""

    def bytes_of(self, index: int) -> bytes:
        raise NotImplementedError


class _ByteLevel(_Pieces):
    """Tokens written in byte-level BPE's alphabet, in which every byte has a printable character."""

    def __init__(self, tokenizer: Any, special: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special

    def bytes_of(self, index: int) -> bytes:
        token = None if index in self._special else self._tokenizer.id_to_token(index)
        if token is None:
            return b""
        try:
            return bytes([_BYTES[letter] for letter in token])
        except KeyError:
            return bytes(token.encode())  # an added token is plain text


class _SentencePiece(_Pieces):
    """Pieces with `▁` for a space and `<0x0A>` for a byte; with `strip` the answer's first space is left out."""

    def __init__(self, tokenizer: Any, special: frozenset[int], strip: bool) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._strip = strip

    def bytes_of(self, index: int) -> bytes:
        token = None if index in self._special else self._tokenizer.id_to_token(index)
        if token is None:
            return b""
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                data = bytes([int(token[3:5], 16)])
            except ValueError:
                data = token.encode()
        else:
            data = token.replace("▁", " ").encode()
        if self._strip:
            self._strip = False
            data = data.removeprefix(b" ")
        return data


class _Joined(_Pieces):
    """Any other tokenizer: what an id adds to the text of the few ids before it."""

    def __init__(self, tokenizer: Any, special: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._before: list[int] = []

    def bytes_of(self, index: int) -> bytes:
        if index in self._special or self._tokenizer.id_to_token(index) is None:
            return b""
        known = self._tokenizer.decode(self._before)
        self._before.append(index)
        text = self._tokenizer.decode(self._before)
        del self._before[:-CONTEXT_IDS]
        return bytes(text[len(known) :].encode("utf-8", "replace"))


def _pieces_of(tokenizer: Any, special: frozenset[int]) -> Callable[[], _Pieces]:
    """How the tokenizer's own decoder joins tokens, told from its description."""
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    steps = {step["type"]: step for step in decoder.get("decoders", [decoder]) if "type" in step}
    if set(steps) == {"ByteLevel"}:
        return lambda: _ByteLevel(tokenizer, special)
    if set(steps) in ({"Replace", "ByteFallback", "Fuse"}, {"Replace", "ByteFallback", "Fuse", "Strip"}):
        replaces = steps["Replace"]
        if replaces.get("pattern") == {"String": "▁"} and replaces.get("content") == " ":
            strip = "Strip" in steps and steps["Strip"].get("start") == 1
            return lambda: _SentencePiece(tokenizer, special, strip)
    return lambda: _Joined(tokenizer, special)


def _read(file: Path) -> Any:
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # `tokenizers` raises plain exceptions, or panics
        raise ConfigError(f"{file}: not a usable tokenizer: {error}") from None
    # Files of encoders ask for these; a prompt that is cut or filled up in silence would be another prompt.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _alphabet() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable Latin-1 bytes are themselves, the others take 256, 257, … in order."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES: Final = _alphabet()
