"""A Hugging Face model over the weights that all workers of the machine share: nothing is read, converted or copied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from foreserve.engines.binding import bind, skeleton
from foreserve.engines.weights import Weights
from foreserve.runtime import leases
from foreserve.runtime.leases import WeightsError


def shared(folder: Path, dtype: torch.dtype, names: Sequence[str], auto: Any = AutoModelForCausalLM) -> Any:
    """The model that `auto.from_pretrained` makes of `folder` in `dtype`, over the weights `names` (one for each file).

    Waits until they are there. Tables that older files have, and the model makes by itself, are passed over. Its
    parameters cannot be written: whoever does it all the same ends the process.
    Raises WeightsError where the files are not the model's parameters as they are, and whatever the library raises.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if getattr(config, "quantization_config", None):
        raise WeightsError("they are quantised")
    with skeleton():
        model = auto.from_config(config, dtype=dtype)
    _as_stored(model)
    by_tensor: dict[str, Weights] = {}
    for name in names:
        weights = Weights(leases.get(name))
        for tensor in weights.names():
            if tensor in by_tensor:
                raise WeightsError(f"tensor {tensor!r} is in two of the files")
            by_tensor[tensor] = weights
    for tensor in _own_tables(model):
        by_tensor.pop(tensor, None)
    # Not guarded: kernels that ask for addresses (quantised, fused, custom ones) only do so when a request runs.
    device = next((weights.device for weights in by_tensor.values()), "cpu")
    bind(model, by_tensor, lambda tensor, _: by_tensor[tensor].torch(tensor, guarded=False), "", str(folder), device)
    # As the library leaves them: torch multiplies by one that wants no gradient in another way, with other last bits.
    return model.requires_grad_(True)


def _own_tables(model: Any) -> list[str]:
    """Buffers that are not stored, such as the numbers of positions."""
    kept = model.state_dict().keys()
    return [name for name, _ in model.named_buffers() if name not in kept]


def _as_stored(model: Any) -> None:
    """Refuse models for which the library would change tensors while it loads them, names left aside."""
    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    if kept and model.dtype != torch.float32:
        raise WeightsError(f"the library keeps some of them in f32: {', '.join(sorted(kept))}")
    if any(isinstance(each, WeightConverter) for each in get_model_conversion_mapping(model)):
        raise WeightsError(f"the library rearranges the tensors of {type(model).__name__} while it loads them")
