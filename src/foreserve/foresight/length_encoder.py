"""The full tier's encoder: meanings of texts by MiniLM, a small BERT, on one core.

A user's text is cut to `MOST_TOKENS`, from its beginning and its end, which keeps one prediction under 15 ms;
an instruction is read to four times that and remembered by its hash. Runs on OpenVINO, or else on torch, whichever is
installed; both are loaded only when an encoder is made.
"""

from __future__ import annotations

import importlib.util
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from foreserve.errors import ConfigError
from foreserve.foresight.length_features import MEANING

MOST_TOKENS: Final = 64
MOST_INSTRUCTION_TOKENS: Final = 256
MOST_CHARS: Final = 16
"""Characters for each token that is kept, at most; longer texts are cut before they are tokenised."""

TOGETHER: Final = 32
"""Texts of one run of the network."""

REMEMBERED: Final = 1024
"""Instructions, 768 bytes each."""

INSTALL: Final = "pip install 'foreserve[openvino]', or 'foreserve[torch]'"


class Shape(msgspec.Struct, frozen=True):
    """What is read of a BERT's `config.json`."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float


class Network(Protocol):
    """A BERT whose token vectors are averaged and brought to length one."""

    def __call__(self, ids: NDArray[np.int64], mask: NDArray[np.float32]) -> NDArray[np.float32]:
        """(texts, tokens) twice -> (texts, hidden)."""
        ...


class MiniLM:
    """Implements `Encoder`. Not thread-safe."""

    def __init__(self, folder: Path, *, backend: str | None = None) -> None:
        """From a Hugging Face folder. `backend`: `openvino` or `torch`, by default the first that is installed.

        Raises ConfigError where neither is, or the folder is not such a model.
        """
        self.backend = _backend(backend)
        try:
            import tokenizers

            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            shape = msgspec.json.decode((folder / "config.json").read_bytes(), type=Shape)
            weights = read_safetensors(folder / "model.safetensors")
            if shape.hidden_size != MEANING:
                raise ValueError(f"its meanings have {shape.hidden_size} numbers, not {MEANING}")
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._network = _network(self.backend, weights, shape)
        except ImportError as error:
            raise ConfigError(f"the length predictor's full tier needs {error.name}: {INSTALL}") from None
        except Exception as error:  # a file that is missing or not what it should be; each library has its own
            raise ConfigError(f"{folder}: not a usable sentence encoder: {error}") from None
        self._remembered: OrderedDict[bytes, NDArray[np.float16]] = OrderedDict()

    def inputs(self, texts: Sequence[str]) -> NDArray[np.float16]:
        return self._encode(texts, MOST_TOKENS)

    def instructions(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """No instruction has no meaning: zeros. One that is asked again costs a hash."""
        keys = [blake2b(text.encode("utf-8", "replace"), digest_size=16).digest() if text else b"" for text in texts]
        found: dict[bytes, NDArray[np.float16]] = {b"": np.zeros(MEANING, np.float16)}
        for key in dict.fromkeys(keys):
            if key in self._remembered:
                found[key] = self._remembered[key]
                self._remembered.move_to_end(key)
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        for key, text in new.items():  # one at a time: what is said of a text depends on no other
            found[key] = self._remembered[key] = self._encode([text], MOST_INSTRUCTION_TOKENS)[0]
            if len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return np.stack([found[key] for key in keys])

    def _encode(self, texts: Sequence[str], most: int) -> NDArray[np.float16]:
        """In runs of like length, so that little is filled up."""
        tokens = [self._tokens(text, most) for text in texts]
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        found = np.zeros((len(texts), MEANING), np.float16)
        for start in range(0, len(order), TOGETHER):
            chosen = order[start : start + TOGETHER]
            width = max(len(tokens[index]) for index in chosen)
            ids, mask = np.zeros((len(chosen), width), np.int64), np.zeros((len(chosen), width), np.float32)
            for row, index in enumerate(chosen):
                ids[row, : len(tokens[index])] = tokens[index]
                mask[row, : len(tokens[index])] = 1.0
            found[chosen] = self._network(ids, mask)
        return found

    def _tokens(self, text: str, most: int) -> list[int]:
        if len(text) > most * MOST_CHARS:
            text = f"{text[: most * MOST_CHARS * 2 // 3]} {text[-most * MOST_CHARS // 3 :]}"
        ids: list[int] = self._tokenizer.encode(text.encode("utf-8", "replace").decode()).ids
        if len(ids) <= most:
            return ids
        head = most * 2 // 3
        return ids[:head] + ids[head - most :]


def read_safetensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """The single-precision arrays of a safetensors file. Raises ValueError or OSError."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    entries: dict[str, Any] = json.loads(data[8 : 8 + size])
    found = {}
    for name, entry in entries.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = entry["data_offsets"]
            found[name] = np.frombuffer(data[8 + size + start : 8 + size + end], "<f4").reshape(entry["shape"])
    return found


def _backend(wanted: str | None) -> str:
    for name in ("openvino", "torch") if wanted is None else (wanted,):
        if importlib.util.find_spec(name) is not None:
            return name
    raise ConfigError(f"the length predictor's full tier needs {wanted or 'openvino or torch'}: {INSTALL}")


def _network(backend: str, weights: Mapping[str, NDArray[np.float32]], shape: Shape) -> Network:
    if backend == "openvino":
        from foreserve.foresight.length_encoder_openvino import OpenVINONetwork

        return OpenVINONetwork(weights, shape)
    from foreserve.foresight.length_encoder_torch import TorchNetwork

    return TorchNetwork(weights, shape)
