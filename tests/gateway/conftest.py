from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from foreserve import App
from tests.gateway.house import House, serving
from tests.gateway.scripted import ScriptedLLM


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """One scripted model, `chat`, behind a real server."""
    with serving(App(chat=ScriptedLLM(), state={"history": False})) as house:
        yield house


@pytest.fixture
def client(house: House) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=house.url, timeout=20) as client:
        yield client
