import io
import itertools
import lzma
import tarfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from benchmarks.cifar import CLASSES, archive

from foreserve.core import Work
from foreserve.elastic.engine import ElasticEngine
from foreserve.elastic.folder import read_folder, read_tasks
from foreserve.elastic.payload import Encode, Vector
from foreserve.models.catalog import locate
from foreserve.services.encoder import Encoder
from foreserve.tensors import tensor_of

EVERY = 40
"""Of the held-out images, which come first in the archive, one in so many."""


def test_the_trained_default_is_found_by_name_with_its_task() -> None:
    encoder = Encoder("vit-cifar10")
    encoder.check()
    task = encoder.tasks["cifar10"]
    assert task.labels == [*CLASSES]
    assert task.held_out >= 1000
    assert len(task.kept) >= 3
    assert max(task.accuracy.values()) == task.accuracy[task.kept[-1]]
    folder = locate("vit-cifar10", "test").path
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 8_000_000


async def labels(payloads: list[Encode], setting: str) -> list[str]:
    folder = locate("vit-cifar10", "test").path
    facts = read_folder(folder)
    task = read_tasks(folder / "tasks", facts)["cifar10"]
    engine = ElasticEngine(
        folder=str(folder),
        facts=msgspec.to_builtins(facts),
        settings=[setting],
        tasks={"cifar10": (str(folder / "tasks" / "cifar10"), msgspec.to_builtins(task))},
        size=64,
        threads=1,
        measure_s=0.0,
    )
    await engine.start()
    found: list[str] = []
    for start in range(0, len(payloads), 64):
        works = [
            Work(id=str(at), payload=each, arrival=0.0, deadline=None, cost={"slots": 1.0})
            for at, each in enumerate(payloads[start : start + 64])
        ]
        async for chunks in engine.run_batch(works, setting):
            for chunk in chunks:
                assert isinstance(chunk.data, Vector)
                probabilities = np.frombuffer(chunk.data.data, "<f4")
                assert probabilities.sum() == pytest.approx(1.0, abs=1e-4)
                found.append(task.labels[int(probabilities.argmax())])
    await engine.close()
    return found


async def test_it_tells_any_picture_to_be_something() -> None:
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(3)]
    found = await labels([Encode(pixels=tensor_of(each), task="cifar10") for each in pictures], "merge:8")
    assert set(found) <= {*CLASSES}


@pytest.mark.parametrize("setting", ["plain", "merge:8"])
async def test_on_held_out_images_it_is_about_as_accurate_as_its_file_says(setting: str) -> None:
    source = archive()
    if source is None:
        pytest.skip("no CIFAR-10 images here")
    images = held_out(source)
    found = await labels([Encode(image=image, task="cifar10") for _, image in images], setting)
    right = sum(label == told for (label, _), told in zip(images, found, strict=True)) / len(images)
    folder = locate("vit-cifar10", "test").path
    task = read_tasks(folder / "tasks", read_folder(folder))["cifar10"]
    assert right == pytest.approx(task.accuracy[setting], abs=0.08)  # 250 images: three standard deviations


def held_out(source: Path) -> list[tuple[str, bytes]]:
    found = []
    with lzma.open(source) as raw, tarfile.open(fileobj=raw, mode="r|") as tar:
        for at, member in enumerate(itertools.takewhile(lambda each: each.name.startswith("test/"), tar)):
            opened = tar.extractfile(member)
            if at % EVERY == 0 and opened is not None:
                found.append((member.name.split("/")[1], io.BytesIO(opened.read()).getvalue()))
    return found
