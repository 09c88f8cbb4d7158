"""Tokenizers from GGUF fields: how each pre type cuts text, and what SentencePiece's scores mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from foreserve.errors import ConfigError
from foreserve.models.gguf_file import read_header
from foreserve.models.gguf_tokenizer import PRE_TYPES, from_gguf


def cuts(make: Callable[..., Path], pre: str | None, text: str) -> list[str]:
    tokenizer = from_gguf(read_header(make(pre=pre)))
    return [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "it's 123 a", ["it", "'s", " ", "1", "2", "3", " a"]),
        ("gpt-2", "it's 123 a", ["it", "'s", " 123", " a"]),
        (None, "it's 123 a", ["it", "'s", " 123", " a"]),
        ("llama-bpe", "it'S 12345\n\n b", ["it", "'S", " ", "123", "45", "\n\n", " b"]),
        ("qwen2", "it'S 12\n b", ["it", "'S", " ", "1", "2", "\n", " b"]),
        ("tekken", "HelloWorld 12/\n", ["Hello", "World", " ", "1", "2", "/\n"]),
    ],
)
def test_pre_types_cut_text(make_gguf, pre: str | None, text: str, pieces: list[str]) -> None:
    assert cuts(make_gguf, pre, text) == pieces


@pytest.mark.parametrize("pre", PRE_TYPES)
def test_every_pre_type_keeps_every_text(make_gguf, pre: str) -> None:
    tokenizer = from_gguf(read_header(make_gguf(pre=pre)))
    for text in ("hello  world\n\n", "naïve 日本語 👩‍👩‍👧 ½", " \t x", "a1b22c333"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_merges_apply_in_order(make_gguf) -> None:
    tokenizer = from_gguf(read_header(make_gguf()))
    assert tokenizer.encode("hello w", add_special_tokens=False).tokens == ["hello", "Ġw"]
    assert tokenizer.encode("<|im_start|>hello<|im_end|>", add_special_tokens=False).ids == [1, 262, 2]


def test_unknown_kinds_name_the_supported(make_gguf) -> None:
    with pytest.raises(
        ConfigError, match=r"tokenizer\.ggml\.pre is 'qwen3'.*did you mean 'qwen2'.*valid: default, gpt-2"
    ):
        from_gguf(read_header(make_gguf(pre="qwen3")))
    with pytest.raises(ConfigError, match=r"tokenizer\.ggml\.model is 'rwkv'.*valid: gpt2, llama"):
        from_gguf(read_header(make_gguf(model="rwkv")))
    with pytest.raises(ConfigError, match="its tokenizer cannot be built"):
        from_gguf(read_header(make_gguf(merges=["zz yy"], tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])))


def test_beginning_tokens_round_a_plain_prompt(make_gguf) -> None:
    def bos(writer: gguf.GGUFWriter) -> None:
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(True)

    plain = from_gguf(read_header(make_gguf()))
    assert plain.encode("hello").ids == [262]
    wrapped = from_gguf(read_header(make_gguf(extra=bos)))
    assert wrapped.encode("hello").ids == [1, 262, 2]
    assert wrapped.encode("hello", add_special_tokens=False).ids == [262]
    assert from_gguf(read_header(make_gguf(pre="llama-bpe"))).encode("hello").ids == [1, 262]


PIECES = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3)] + [(f"<0x{byte:02X}>", 0, 6) for byte in range(256)]
PIECES += [("▁", -1, 1), ("a", -2, 1), ("b", -3, 1), ("c", -4, 1)]
PIECES += [("ab", -6, 1), ("bc", -5, 1), ("▁a", -7, 1), ("abc", -8, 1), ("▁abc", -9, 1)]


def sentence_piece(make: Callable[..., Path], prefix: bool) -> Path:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_add_space_prefix(prefix)

    tokens, scores, kinds = (list(column) for column in zip(*PIECES, strict=True))
    return make(model="llama", pre="default", tokens=tokens, scores=scores, kinds=kinds, extra=extra)


def test_sentence_piece_joins_by_score(make_gguf) -> None:
    tokenizer = from_gguf(read_header(sentence_piece(make_gguf, prefix=False)))
    # "bc" scores above "ab", so a|bc joins first, then "abc" by its only remaining way.
    assert tokenizer.encode("abc", add_special_tokens=False).tokens == ["abc"]
    assert tokenizer.encode("abbc", add_special_tokens=False).tokens == ["ab", "bc"]
    assert tokenizer.encode("é", add_special_tokens=False).tokens == ["<0xC3>", "<0xA9>"]
    assert tokenizer.encode("a</s>", add_special_tokens=False).tokens == ["a", "</s>"]
    for text in ("abc a b", " abc", "日 é a", "👩‍👩‍👧"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_sentence_piece_with_a_space_before(make_gguf) -> None:
    tokenizer = from_gguf(read_header(sentence_piece(make_gguf, prefix=True)))
    assert tokenizer.encode("abc", add_special_tokens=False).tokens == ["▁abc"]
    assert tokenizer.encode("abc").ids[0] == 1  # such models want their beginning token
    assert tokenizer.decode(tokenizer.encode("abc a").ids) == "abc a"


def test_scores_are_needed(make_gguf) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.ggml\.scores has 0 items for 265 tokens"):
        from_gguf(read_header(make_gguf(model="llama")))
