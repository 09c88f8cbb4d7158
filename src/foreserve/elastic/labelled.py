"""Labelled data for a task: lines of JSON with texts, or a folder of images with a folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from foreserve.elastic.folder import EncoderFacts
from foreserve.elastic.payload import Encode
from foreserve.elastic.words import Words
from foreserve.errors import BadRequest, ConfigError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Row(msgspec.Struct, frozen=True):
    """A line: a text and its label."""

    text: str
    label: str | int


class Labelled(msgspec.Struct, frozen=True):
    """Inputs with the number of each one's label."""

    payloads: list[Encode]
    numbers: list[int]

    def part(self, chosen: Sequence[int]) -> Labelled:
        """Some of them."""
        return Labelled([self.payloads[at] for at in chosen], [self.numbers[at] for at in chosen])

    def split(self, share: float, seed: int) -> tuple[Labelled, Labelled]:
        """All but a `share` of them, and that; at least one of each."""
        order = torch.randperm(len(self.numbers), generator=torch.Generator().manual_seed(seed)).tolist()
        held = min(max(1, round(share * len(order))), len(order) - 1)
        return self.part(sorted(order[held:])), self.part(sorted(order[:held]))


def read_labelled(source: Path, folder: Path, facts: EncoderFacts, labels: Sequence[str]) -> tuple[Labelled, list[str]]:
    """The data in `source` for the encoder in `folder`, and the labels in their order.

    `labels` are those that are known already; without, they are those of the data, in order. Raises ConfigError naming
    the line or the folder that is wrong.
    """
    if facts.images:
        if not source.is_dir():
            raise ConfigError(f"{source}: {facts.name} reads images: a folder with a folder for each class is wanted")
        found = [
            (Encode(image=file.read_bytes()), file.parent.name)
            for file in sorted(source.glob("*/*"))
            if file.suffix.lower() in IMAGES
        ]
    else:
        found = _texts(source, Words(folder, facts))
    if len(found) < 2:
        raise ConfigError(f"{source}: at least two labelled inputs are wanted, {len(found)} are there")
    names = [*labels] or sorted({label for _, label in found})
    if len(names) < 2:
        raise ConfigError(f"{source}: all have the label {names[0]!r}; a task has at least two")
    numbers = {name: at for at, name in enumerate(names)}
    unknown = next((label for _, label in found if label not in numbers), None)
    if unknown is not None:
        raise ConfigError(f"{source}: the label {unknown!r} is not among those to train on: {', '.join(names)[:200]}")
    return Labelled([payload for payload, _ in found], [numbers[label] for _, label in found]), names


def _texts(source: Path, words: Words) -> list[tuple[Encode, str]]:
    try:
        lines = source.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None
    found = []
    for at, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=Row)
            found.append((Encode(ids=words.of_text(row.text, "text")), str(row.label)))
        except (msgspec.DecodeError, BadRequest) as error:
            raise ConfigError(f'{source}, line {at}: {error}; valid: {{"text": "…", "label": "…"}}') from None
    return found
