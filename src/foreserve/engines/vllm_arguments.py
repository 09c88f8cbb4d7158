"""The settings in the words of vLLM's engine arguments; further ones are checked by name and by type.

Nothing here imports vLLM: it may be in another interpreter than the one that reads settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from foreserve.errors import EngineStartError
from foreserve.registry import choices

DTYPES: Final = {"auto": "auto", "bf16": "bfloat16", "f16": "float16", "f32": "float32"}
"""Our names of precisions, and vLLM's. `auto` is as the model's folder has it."""

OURS: Final = {
    "model": "model",
    "max_model_len": "context_tokens",
    "max_num_seqs": "max_running",
    "max_num_batched_tokens": "max_batched_tokens",
    "dtype": "weights",
    "enable_prefix_caching": "prefix_caching",
    "max_num_queued_reqs": "max_waiting",
    "enable_sleep_mode": "sleep",
    "scheduling_policy": "",
    "generation_config": "",
    "disable_log_stats": "",
    "skip_tokenizer_init": "",
    "runner": "",
}
"""Arguments that follow from a setting, by its name, or (empty) that this engine depends on."""

_KV: Final = ("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override")
"""Other ways to say how large the KV cache is; each goes before `kv_cache_gb`."""


class VLLMSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What `VLLMEngine` is told, see there."""

    model_path: str
    max_running: int
    max_waiting: int
    max_batched_tokens: int | None
    kv_cache_gb: float | None
    prefix_caching: bool
    context_tokens: int | None
    weights: str
    sleep: bool
    more: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.weights not in DTYPES:
            raise ValueError(f"`weights` is {self.weights!r}; valid: {', '.join(DTYPES)}")
        for name, least in (("max_running", 1), ("max_waiting", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least {least}")
        for name in self.more:
            if name in OURS:
                setting = OURS[name]
                words = f"set `{setting}` in its place" if setting else "this engine depends on its value"
                raise ValueError(f"`{name}` is not for `engine_options`: {words}")

    @property
    def slots(self) -> int:
        """The most requests that vLLM is given at once: those that run, and those it may start by itself."""
        return self.max_running + self.max_waiting

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `AsyncEngineArgs`."""
        words: dict[str, Any] = {
            "model": self.model_path,
            "dtype": DTYPES[self.weights],
            "max_num_seqs": self.max_running,
            "max_num_queued_reqs": self.slots,
            "enable_prefix_caching": self.prefix_caching,
            # Without a wish: the model's own context, or as much of it as the KV cache holds.
            "max_model_len": self.context_tokens or -1,
            "scheduling_policy": "priority",
            # What shapes an answer comes with each request, not from a file beside the weights.
            "generation_config": "vllm",
            "disable_log_stats": True,  # our own logger is the only one
            "enable_sleep_mode": self.sleep,
            "use_tqdm_on_load": False,
        }
        if self.max_batched_tokens is not None:
            words["max_num_batched_tokens"] = max(self.max_batched_tokens, self.max_running)
        if self.kv_cache_gb is not None and not any(name in self.more for name in _KV):
            words["kv_cache_memory_bytes"] = int(self.kv_cache_gb * 2**30)
        return words | dict(self.more)


def check(more: Mapping[str, Any], accepted: type) -> None:
    """Whether `accepted`, vLLM's dataclass of arguments, takes these values. Raises EngineStartError naming the first.

    What it says of an argument's type as text alone is left to vLLM.
    """
    import pydantic  # a part of vLLM's own installation

    fields = {field.name: field for field in dataclasses.fields(accepted) if not field.name.startswith("_")}
    for name, value in more.items():
        if name not in fields:
            near = choices(name, [each for each in fields if each not in OURS])
            raise EngineStartError(f"engine_options: vLLM has no argument {name!r}{near}")
        kind: Any = fields[name].type
        if isinstance(kind, str):
            continue
        try:
            kept = pydantic.TypeAdapter(kind, config=pydantic.ConfigDict(arbitrary_types_allowed=True))
            kept.validate_python(value)
        except pydantic.ValidationError as error:
            said = error.errors()[0]["msg"]
            raise EngineStartError(f"engine_options: `{name}` is {value!r}: {said}") from None
        except (pydantic.PydanticUserError, NameError, TypeError):
            continue  # a type that cannot be checked by itself
