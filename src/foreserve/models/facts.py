"""What is known of a model before it runs: read from GGUF fields or from the files of a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from foreserve.errors import ConfigError

if TYPE_CHECKING:
    from foreserve.models.gguf_file import Header

MAX_JSON_BYTES: Final = 64 * 2**20

END_OF_TURN: Final = (
    *("</s>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
    *("<|end|>", "<end_of_turn>", "<|end_of_turn|>"),
)
"""Control tokens that end an answer, by their text; files seldom name all of those their model uses."""


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A model's own figures. `kv_bytes_per_token` is at f16; `weights_bytes` are those of the form it was prepared in.

    Generation ends at any of `eos_ids`. `chat_template` is Jinja source, `None` where the model has none; it comes
    from a stranger and is rendered through `chat_template.ChatTemplate` alone.
    """

    name: str
    architecture: str
    context_tokens: int
    vocab_size: int
    layers: int
    kv_bytes_per_token: int
    weights_bytes: int
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    bos_token: str = ""
    eos_token: str = ""
    chat_template: str | None = None


def from_gguf(header: Header) -> ModelFacts:
    """The facts in a GGUF file's fields. Raises ConfigError that names the file and the field at fault."""
    architecture = header.text("general.architecture")
    tokens = header.strings("tokenizer.ggml.tokens")
    if not architecture or not tokens:
        missing = "tokenizer.ggml.tokens" if architecture else "general.architecture"
        raise ConfigError(f"{header.path}: not a language model: the field {missing} is missing")
    if header.integer("split.count", 0) > 1:
        raise ConfigError(f"{header.path}: a part of a split model; join its parts with llama-gguf-split --merge")
    layers = header.integer(f"{architecture}.block_count", most=10_000)
    bos, eos = (_token(header, f"tokenizer.ggml.{which}_token_id", len(tokens)) for which in ("bos", "eos"))
    return ModelFacts(
        name=header.text("general.name") or header.path.stem,
        architecture=architecture,
        context_tokens=header.integer(f"{architecture}.context_length"),
        vocab_size=len(tokens),
        layers=layers,
        kv_bytes_per_token=_kv_bytes(header, architecture, layers),
        weights_bytes=sum(tensor.size for tensor in header.tensors),
        bos_id=bos,
        eos_ids=_ends(header, tokens, eos),
        bos_token="" if bos is None else tokens[bos],
        eos_token="" if eos is None else tokens[eos],
        chat_template=header.text("tokenizer.chat_template") or None,
    )


def _token(header: Header, key: str, vocabulary: int) -> int | None:
    return header.integer(key, most=vocabulary - 1) if key in header.fields else None


def _ends(header: Header, tokens: list[str], eos: int | None) -> tuple[int, ...]:
    named = [eos, *(_token(header, f"tokenizer.ggml.{which}_token_id", len(tokens)) for which in ("eot", "eom"))]
    kinds = header.numbers("tokenizer.ggml.token_type")
    control = [i for i, kind in enumerate(kinds[: len(tokens)]) if kind == 3 and tokens[i] in END_OF_TURN]
    return tuple(dict.fromkeys(token for token in (*named, *control) if token is not None))


def _kv_bytes(header: Header, architecture: str, layers: int) -> int:
    """Two bytes for every key and value element; heads may differ from layer to layer."""
    key = f"{architecture}.attention"
    heads = max([1, *_counts(header, f"{key}.head_count")])
    each = header.integer(f"{architecture}.embedding_length") // heads
    k, v = header.integer(f"{key}.key_length", each), header.integer(f"{key}.value_length", each)
    kv_heads = _counts(header, f"{key}.head_count_kv") or [heads]
    total = sum(kv_heads) if len(kv_heads) == layers else max(kv_heads) * layers
    return total * (k + v) * 2


def _counts(header: Header, key: str) -> list[int]:
    counts = header.numbers(key)
    if not all(isinstance(count, int) and 0 <= count < 2**20 for count in counts):
        raise ConfigError(f"{header.path}: the field {key} holds {str(counts)[:40]}; expected counts")
    return [int(count) for count in counts]


def from_folder(folder: Path, weights_bytes: int) -> ModelFacts:
    """The facts in a Hugging Face folder's files. Raises ConfigError that names the file and what is missing."""
    outer = read_json(folder / "config.json")
    inner = outer.get("text_config")
    config: dict[str, Any] = inner if isinstance(inner, dict) else outer
    generation = read_json(folder / "generation_config.json", optional=True)
    tokenizer = read_json(folder / "tokenizer_config.json", optional=True)
    layers = _figure(folder, config, "num_hidden_layers", "n_layer")
    heads = _figure(folder, config, "num_attention_heads", "n_head")
    head = config.get("head_dim") or _figure(folder, config, "hidden_size", "n_embd") // heads
    kv_heads = config.get("num_key_value_heads") or heads
    bos = _ids(generation.get("bos_token_id", config.get("bos_token_id")))
    eos = _ids(generation.get("eos_token_id", config.get("eos_token_id")))
    return ModelFacts(
        name=folder.name,
        architecture=str(config.get("model_type") or outer.get("model_type") or "unknown"),
        context_tokens=_figure(folder, config, "max_position_embeddings", "n_positions"),
        vocab_size=_figure(folder, config, "vocab_size"),
        layers=layers,
        kv_bytes_per_token=layers * int(kv_heads) * int(head) * 2 * 2,
        weights_bytes=weights_bytes,
        bos_id=bos[0] if bos else None,
        eos_ids=eos,
        bos_token=_text(tokenizer.get("bos_token")),
        eos_token=_text(tokenizer.get("eos_token")),
        chat_template=_template(folder, tokenizer),
    )


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """A JSON object of a model folder; `{}` where an optional file is missing. Raises ConfigError."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        if optional:
            return {}
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _figure(folder: Path, config: dict[str, Any], *keys: str) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
            return value
    raise ConfigError(f"{folder / 'config.json'}: no usable figure {' or '.join(keys)}")


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(item for item in values if isinstance(item, int) and not isinstance(item, bool))


def _text(token: Any) -> str:
    """A token as tokenizer_config.json has it: its text, or an object that holds the text."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _template(folder: Path, tokenizer: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    template = tokenizer.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
