"""A twin beside the kind it stands for: what its engines tell, and what its requests cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from foreserve.core import EngineInfo, EngineSpec, Prefix, Request
from foreserve.engines.forwarding import Forward
from foreserve.engines.generation import Generate
from foreserve.engines.profile import linear
from foreserve.errors import ConfigError
from foreserve.foresight.length import Asked
from foreserve.runtime.factory import load_factory, make
from foreserve.services.function import Function
from foreserve.services.llm import LLM
from foreserve.services.upstream import UNBOUNDED, Upstream
from foreserve.simulation.adapted import adapted
from foreserve.simulation.oracle import Oracle
from foreserve.simulation.twin import Twin
from foreserve.traces.row import TraceRow
from tests.engines.scripted_server import scripted

PROFILE = linear(slots=8, kv_tokens=10_000, context_tokens=4000)


async def told(spec: EngineSpec) -> EngineInfo:
    engine: Any = make(load_factory, spec.factory, spec.options)
    info: EngineInfo = await engine.start()
    await engine.close()
    return info


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with scripted() as server:
        yield server.url


async def test_the_twin_of_a_server_is_bounded_by_what_the_gateway_bounds_it_by(url: str) -> None:
    kind = Upstream([url], model="m", max_running=3)
    twin = Twin("up", kind, PROFILE, Oracle())
    live, simulated = await told(kind.engines()[0]), await told(twin.engines()[0])
    assert simulated.capacity == live.capacity == {"slots": 3.0}
    assert twin.idempotent == kind.idempotent


async def test_the_twin_of_a_local_engine_tells_its_slots_and_cache() -> None:
    kind = LLM("simulated", max_running=8)
    twin = Twin("chat", kind, PROFILE, Oracle())
    live, simulated = await told(kind.engines()[0]), await told(twin.engines()[0])
    assert simulated.capacity.keys() == live.capacity.keys()
    assert simulated.capacity == {"slots": 8.0, "kv_tokens": 10_000.0}


async def test_one_that_only_observes_holds_nothing_back_and_foresees_nothing() -> None:
    kind = Upstream(["http://127.0.0.1:9"], model="m", max_running=3, observe=True)
    twin = Twin("up", kind, PROFILE, Oracle())
    assert (await told(twin.engines()[0])).capacity == {"slots": float(UNBOUNDED)}
    assert twin.foreseer.settings.predictor == kind.foreseer.settings.predictor == "off"
    assert not twin.idempotent


@pytest.mark.parametrize("most", [None, 10, 3000])
@pytest.mark.parametrize("predictor", ["off", "fast"])
@pytest.mark.parametrize("foreseen", [True, False])
async def test_the_same_lengths_have_the_same_price(most: int | None, predictor: str, foreseen: bool) -> None:
    settings: dict[str, Any] = {"foresight": {"predictor": predictor}}
    near, far = LLM("simulated", **settings), Upstream(["http://127.0.0.1:9"], model="m", **settings)
    far.ready(EngineInfo(batching="continuous", capacity={"slots": 1.0}, facts={"context_tokens": 4000}))
    row = TraceRow(arrival=0.0, input_tokens=100, output_tokens=7, most_tokens=most)
    limit = most or 3900
    asked = Asked(instruction="", text="", input_tokens=100, prompt_tokens=100, most=limit, tenant="t")
    prompt = {
        "up": Forward(method="POST", path="/v1/completions", body=b"x" * 400, max_tokens=most or 3900),
        "chat": Generate(prompt=[1] * 100, max_tokens=limit),
    }
    for name, kind in (("chat", near), ("up", far)):
        twin = Twin(name, kind, PROFILE, Oracle())
        sized = twin.payload(row, 512)
        (of_twin,), (of_kind,) = await twin.about([row], [sized]), await kind.foreseer.about([asked])
        live = Request(id="a", service=name, payload=prompt[name], arrival=0.0, about=of_kind if foreseen else None)
        simulated = msgspec.structs.replace(live, payload=sized, about=of_twin if foreseen else None)
        assert twin.price(simulated) == kind.price(live)


@pytest.mark.parametrize(("replicas", "told"), [(1, False), (2, True)])
def test_how_a_row_begins_is_told_to_a_placement_that_chooses_by_it(replicas: int, told: bool) -> None:
    twin = Twin("chat", LLM("simulated", replicas=replicas), PROFILE, Oracle())
    row = TraceRow(arrival=0.0, input_tokens=1200, output_tokens=7, prefix=(3, 5))
    request = Request(id="a", service="chat", payload=twin.payload(row, 512), arrival=0.0)
    assert twin.price(request).prefix == (Prefix(block_tokens=512, blocks=(3, 5)) if told else None)


async def test_a_server_that_is_given_more_than_it_holds_tells_how_much_that_is() -> None:
    twin = Twin("up", Upstream(["http://127.0.0.1:9"], max_running=900), PROFILE, Oracle())
    assert (await told(twin.engines()[0])).holds == {"kv_tokens": 10_000.0}
    assert (await told(Twin("chat", LLM("simulated"), PROFILE, Oracle()).engines()[0])).holds == {}


def test_a_server_keeps_its_own_slots_however_many_it_is_sent() -> None:
    measured = Upstream(["http://127.0.0.1:9"], max_running=8).settings
    asked = Upstream(["http://127.0.0.1:9"], max_running=64).settings
    assert adapted("up", PROFILE, measured, asked) == (PROFILE, [])


def test_other_kinds_cannot_be_simulated() -> None:
    with pytest.raises(ConfigError, match="what can be simulated: llm, upstream"):
        Twin("f", Function("math:sqrt"), PROFILE, Oracle())
