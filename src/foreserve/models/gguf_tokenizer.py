"""A `tokenizers` tokenizer from the fields of a GGUF file: byte-level BPE (`gpt2`) or SentencePiece-like (`llama`)."""

from __future__ import annotations

from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from foreserve.errors import ConfigError
from foreserve.models.gguf_file import Header
from foreserve.registry import choices

_CONTROL, _USER_DEFINED, _UNKNOWN = 3, 4, 2

MAX_PIECE_CHARS: Final = 16_000_000
"""Over all pieces of a SentencePiece vocabulary; the largest have some 2,000,000."""

_WORDS_3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS_1: Final = _WORDS_3.replace("{1,3}", "")
_TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_3: Final = ("llama-bpe", "llama3", "llama-v3")
_SPLITS: Final[dict[str, str]] = {
    **dict.fromkeys(_LLAMA_3, _WORDS_3),
    "qwen2": _WORDS_1,
    "deepseek-r1-qwen": _WORDS_1,
    "tekken": _TEKKEN,
}
_SINGLE_DIGITS: Final = ("smollm", "starcoder", "refact")
_PLAIN: Final = ("default", "gpt-2")
PRE_TYPES: Final = (*_PLAIN, *_SINGLE_DIGITS, *_SPLITS)
"""What `tokenizer.ggml.pre` may say: how text is cut before the merges."""


def from_gguf(header: Header) -> Tokenizer:
    """The tokenizer of a GGUF file. Raises ConfigError that names the file and what is not supported there."""
    model = header.text("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentence_piece}
    if model not in builders:
        raise ConfigError(f"{header.path}: tokenizer.ggml.model is {model!r}{choices(model, builders)}")
    try:
        tokenizer = builders[model](header)
        _add_special(tokenizer, header)
        _add_template(tokenizer, header, model)
    except (ConfigError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # for what does not fit together `tokenizers` raises plain exceptions, or panics
        raise ConfigError(f"{header.path}: its tokenizer cannot be built: {error}") from error
    return tokenizer


def _vocabulary(header: Header) -> dict[str, int]:
    return {token: index for index, token in enumerate(header.strings("tokenizer.ggml.tokens"))}


def _byte_level(header: Header) -> Tokenizer:
    pre = header.text("tokenizer.ggml.pre", "default")
    if pre not in PRE_TYPES:
        raise ConfigError(f"{header.path}: tokenizer.ggml.pre is {pre!r}{choices(pre, PRE_TYPES)}")
    merges = []
    for merge in header.strings("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    tokenizer = Tokenizer(
        models.BPE(vocab=_vocabulary(header), merges=merges, ignore_merges=pre in _LLAMA_3 or pre == "tekken")
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _SPLITS)
    if pre in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[pre]), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    elif pre in _SINGLE_DIGITS:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(header: Header) -> Tokenizer:
    vocabulary = _vocabulary(header)
    scores = header.numbers("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary):
        raise ConfigError(f"{header.path}: tokenizer.ggml.scores has {len(scores)} items for {len(vocabulary)} tokens")
    unknown = header.integer("tokenizer.ggml.unknown_token_id", 0, most=len(scores) - 1)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary, scores),
            unk_token=header.strings("tokenizer.ggml.tokens")[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = header.flag("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces] if prefix else [spaces])
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose joint piece scores highest: every way to make a piece, in that order.

    Ways to make the same piece come in the order of their parts, as in Hugging Face's conversion.
    """
    if sum(map(len, vocabulary)) > MAX_PIECE_CHARS:
        raise ValueError(f"its pieces have more than {MAX_PIECE_CHARS} characters")
    found: list[tuple[float, int, int, str, str]] = []
    for piece, index in vocabulary.items():
        if len(piece) > 256:
            continue  # no piece of a real vocabulary; all its splits would cost its length squared
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[index], vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for _, _, _, left, right in sorted(found)]


def _add_special(tokenizer: Tokenizer, header: Header) -> None:
    tokens, kinds = header.strings("tokenizer.ggml.tokens"), header.numbers("tokenizer.ggml.token_type")
    added = [
        AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind in (_CONTROL, _USER_DEFINED, _UNKNOWN) and token
    ]
    tokenizer.add_tokens(added)


def _add_template(tokenizer: Tokenizer, header: Header, model: str) -> None:
    """Beginning and end tokens that the model wants round a plain prompt; a chat template brings its own."""
    tokens = header.strings("tokenizer.ggml.tokens")
    bos_default = model == "llama" or header.text("tokenizer.ggml.pre", "default") in (*_LLAMA_3, "tekken")
    wanted = {}
    for which, default in (("bos", bos_default), ("eos", False)):
        key = f"tokenizer.ggml.{which}_token_id"
        if header.flag(f"tokenizer.ggml.add_{which}_token", default) and key in header.fields:
            index = header.integer(key, most=len(tokens) - 1)
            wanted[which] = (tokens[index], index)
    if not wanted:
        return
    pieces = [wanted[w][0] if w != "text" else "$A" for w in ("bos", "text", "eos") if w in wanted or w == "text"]
    pair = [*pieces, *(piece if piece != "$A" else "$B" for piece in pieces)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=pieces, pair=pair, special_tokens=list(wanted.values())
    )
