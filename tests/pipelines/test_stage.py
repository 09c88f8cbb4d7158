from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from foreserve.errors import ConfigError
from foreserve.pipelines.failing import default
from foreserve.pipelines.stage import stage, stage_of
from foreserve.pipelines.stream import Stream
from foreserve.pipelines.text import Text
from tests.pipelines.stages import count, double, odd_fails, shout, slowly, write


def test_a_stage_runs_as_it_can_wait():
    assert [each.runs for each in (double, slowly, count, write)] == ["inline", "task", "items", "items"]
    assert [each.gives for each in (double, count, write)] == [int, Stream[int], Text]

    @stage(concurrency=2)
    async def bounded(x: int) -> int:
        return x

    assert bounded.runs == "task"

    def plain(x: int) -> Iterator[str]:
        yield str(x)

    assert stage_of(plain).gives == Stream[str]


def test_async_code_that_only_looks_as_if_it_could_wait_is_called_at_once():
    assert odd_fails.call_now()(2) == 2
    with pytest.raises(ValueError, match="3 is odd"):
        odd_fails.call_now()(3)

    async def waits(x: Any) -> Any:
        async with x:
            pass

    assert stage_of(waits).runs == "task"


async def test_a_stage_can_be_tried_by_itself():
    assert await shout("a") == "A"
    assert [i async for i in count(2)] == [0, 1]


def test_what_is_no_stage_is_told_with_what_would_be():
    async def untyped(*many: int) -> int:
        return 0

    with pytest.raises(ConfigError, match=r"`\*many` has no type to route by"):
        stage_of(untyped)

    async def says_it_yields(x: int) -> AsyncIterator[int]:
        raise NotImplementedError

    with pytest.raises(ConfigError, match="yields nothing; make it a generator"):
        stage_of(says_it_yields)

    async def yields(x: int) -> int:  # type: ignore[misc]
        yield x

    with pytest.raises(ConfigError, match=r"valid: `AsyncIterator\[T\]` for a stream of T, or `Text`"):
        stage_of(yields)

    class Made: ...

    with pytest.raises(ConfigError, match="is no function"):
        stage_of(Made)


def test_words_that_are_wrong_are_told():
    async def code(x: int) -> int:
        await asyncio.sleep(0)
        return x

    with pytest.raises(ConfigError, match=r"unknown word 'retries'; valid: again, attempts, concurrency, failed, name"):
        stage(retries=2)
    with pytest.raises(ConfigError, match=r'`failed` is \'skip\'; valid: "fail", "drop", or default\(VALUE\)'):
        stage(failed="skip")(code)
    with pytest.raises(ConfigError, match="`concurrency` is 0"):
        stage(concurrency=0)(code)
    with pytest.raises(ConfigError, match='`again` is \'never\'; valid: "retract", "continue"'):
        stage(again="never")(code)
    assert stage(failed=default(3), name="named")(code).name == "named"
