"""A function that asks for its weights by name, and one that declared none of that name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foreserve as fs
from foreserve.core import EngineSpec, WeightsRef, Work
from foreserve.engines.python import PythonEngine
from foreserve.errors import EngineStartError
from foreserve.fleet.inline import InlineLauncher
from foreserve.messages import Ready, Run
from foreserve.runtime import leases
from tests.fleet.conformance import Ear

safetensors = pytest.importorskip("safetensors.numpy")


def first(at: int) -> float:
    return float(fs.weights("test_python_weights").numpy("w")[at])


class Several:
    def __init__(self, weights: dict[str, fs.Weights]) -> None:
        self.weights = weights

    def __call__(self) -> list[str]:
        return [f"{name}: {each.names()}" for name, each in self.weights.items()]


@pytest.fixture(autouse=True)
def declared(tmp_path: Path) -> str:
    file = tmp_path / "w.safetensors"
    safetensors.save_file({"w": np.array([1.5, 2.5], np.float32)}, file)
    leases.begin([WeightsRef(name="test_python_weights", source=str(file))])
    return "test_python_weights"


async def answer(target: Any, weights: Any, **args: Any) -> Any:
    engine = PythonEngine(target, weights=weights)
    await engine.start()
    work = Work(id="a", payload={"args": args}, cost={}, arrival=0.0)
    chunks = [chunk async for chunk in engine.run(work)]
    await engine.close()
    return chunks[0].data


async def test_a_function_asks_for_them(declared: str):
    assert await answer(first, declared, at=1) == 2.5


async def test_a_class_is_given_a_mapping_of_several(declared: str):
    assert await answer(Several, [declared]) == [f"{declared}: ['w']"]


async def test_a_name_that_was_not_declared_fails_the_start():
    with pytest.raises(EngineStartError, match="no weights are called 'nobody'"):
        await PythonEngine(Several, weights=["nobody"]).start()


class AskedLate:
    def __init__(self) -> None:
        self.first = float(fs.weights().numpy("w")[0])

    def __call__(self) -> list[float]:
        return [self.first, float(fs.weights().numpy("w")[1])]


async def at_once(at: int) -> float:
    return float(fs.weights().numpy("w")[at])


def in_items(at: int):
    yield float(fs.weights().numpy("w")[at])
    yield float(fs.weights().numpy("w")[at])


@pytest.mark.parametrize(
    ("target", "args", "expected"),
    [
        (AskedLate, {}, [[[1.0, 2.0]], [[3.0, 4.0]]]),
        (at_once, {"at": 1}, [[2.0], [4.0]]),
        (in_items, {"at": 0}, [[1.0, 1.0], [3.0, 3.0]]),
    ],
)
async def test_functions_of_one_process_have_their_own_weights_by_the_same_name(tmp_path, target, args, expected):
    launcher = InlineLauncher()
    connections, ears = [], []
    for at in range(2):
        file = tmp_path / f"{at}.safetensors"
        safetensors.save_file({"w": np.array([2 * at + 1, 2 * at + 2], np.float32)}, file)
        spec = EngineSpec(
            factory="foreserve.engines.python:PythonEngine",
            options={"target": f"{__name__}:{target.__name__}"},
            weights=(WeightsRef(name="weights", source=str(file)),),
        )
        ears.append(Ear())
        connections.append(await launcher.launch(f"f-{at}", spec, ears[-1]))
    found = []
    for connection, ear in zip(connections, ears, strict=True):
        await ear.first(Ready)
        connection.send(Run((Work(id="a", payload={"args": args}, cost={}, arrival=0.0),)))
        await ear.finish("a")
        found.append([chunk.data for chunk in ear.chunks("a") if chunk.finish is None])
    await launcher.close()
    assert found == expected
