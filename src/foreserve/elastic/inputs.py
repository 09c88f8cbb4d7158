"""Payloads as the tensors that a model takes: rows of ids padded to the longest, images read and sized."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from foreserve.elastic.folder import EncoderFacts
from foreserve.elastic.payload import Encode
from foreserve.errors import EngineStartError
from foreserve.tensors import array

log = logging.getLogger(__name__)

MOST_PIXELS = 64 * 2**20
"""Of an image, before it is made smaller."""


class BadInput(Exception):
    """An input that cannot be read, in words."""


def padded(payloads: Sequence[Encode], facts: EncoderFacts) -> dict[str, Tensor]:
    """Token ids, mask and, of pairs, types, `[B, longest]`, padded on the right."""
    longest = max(len(payload.ids) for payload in payloads)
    ids = torch.full((len(payloads), longest), facts.pad_id, dtype=torch.long)
    mask = torch.zeros(len(payloads), longest, dtype=torch.long)
    types = torch.zeros(len(payloads), longest, dtype=torch.long)
    for row, payload in enumerate(payloads):
        count = len(payload.ids)
        ids[row, :count] = torch.tensor(payload.ids)
        mask[row, :count] = 1
        if payload.types:
            types[row, :count] = torch.tensor(payload.types)
    made = {"input_ids": ids, "attention_mask": mask}
    return {**made, "token_type_ids": types} if any(payload.types for payload in payloads) else made


class Images:
    """Makes pixels of images as the model's own processor does."""

    def __init__(self, folder: Path, facts: EncoderFacts) -> None:
        """Raises EngineStartError where the processor cannot be made."""
        from transformers import AutoImageProcessor, ViTImageProcessorPil

        self._size = facts.image_size
        try:
            if (folder / "preprocessor_config.json").is_file():
                self._processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
            else:
                self._processor = ViTImageProcessorPil(size={"height": self._size, "width": self._size})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise EngineStartError(f"{folder}: its image processor cannot be made: {error}") from error

    def pixels(self, payload: Encode) -> Tensor:
        """`[3, height, width]`. Raises BadInput for what is no image."""
        found = self._processor(self._opened(payload), return_tensors="pt")["pixel_values"][0]
        return torch.as_tensor(found)

    def _opened(self, payload: Encode) -> Image.Image:
        if payload.pixels is not None:
            return Image.fromarray(np.array(array(payload.pixels)))
        try:
            image = _image(payload.image)
            if image.width * image.height > MOST_PIXELS:
                raise BadInput(f"the image has {image.width} x {image.height} pixels; at most {MOST_PIXELS} are taken")
            return image.convert("RGB")
        except BadInput:
            raise
        except UnidentifiedImageError:
            raise BadInput(
                "the image cannot be read: it is neither an image file (PNG, JPEG, …) nor one in base64"
            ) from None
        except Exception as error:  # PIL raises many kinds for a broken file
            raise BadInput(f"the image cannot be read: {error}") from None


def _image(data: bytes) -> Image.Image:
    """An image file, or one in base64, as it comes in JSON, which has no bytes."""
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        try:
            decoded = base64.b64decode(data, validate=True)
        except ValueError:
            decoded = b""
        if not decoded:
            raise
        return Image.open(io.BytesIO(decoded))
