from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from foreserve import App, function, pipeline, stage
from tests.gateway.house import House, serving
from tests.gateway.scripted import ScriptedLLM

KEY = "contract-key"


@function(launcher="inline")
def echo(**values: object) -> object:
    return values


@function(launcher="inline")
def items(**values: object) -> Iterator[object]:
    yield from values.values()


@function(launcher="inline", route="/typed")
def typed(number: int, names: list[str], exact: bool = False) -> dict[str, object]:
    return {"number": number % 7, "names": names, "exact": exact}


@stage
async def listed(text: str) -> list[str]:
    return text.split()


@pipeline
def echoed(number: int, text: str) -> Any:
    return typed(number, listed(text)), text


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """A scripted model that can be made to do everything, another with one slot and a queue of one, and functions."""
    app = App(
        chat=ScriptedLLM(),
        small=ScriptedLLM(slots=1, queue={"max_waiting": 1}),
        away=ScriptedLLM(replicas=0),
        echo=echo,
        items=items,
        typed=typed,
        echoed=echoed,
        server={"api_keys": [{"key": KEY}]},
        state={"history": False},
    )
    with serving(app) as house:
        yield house


@pytest.fixture
def base_url(house: House) -> str:
    """Where the API of the server under test is."""
    return f"{house.url}/v1"
