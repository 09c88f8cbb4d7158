import asyncio

from foreserve.core import Finish
from foreserve.engines.answer import TokenAnswer, generate_of
from foreserve.messages import Run, decode_to_worker, encode
from tests.engines.contract import work

DONE = Finish(reason="stop")


async def test_tokens_that_were_not_asked_for_wait_and_leave_together():
    answer = TokenAnswer(work("a"))
    chunks = answer.chunks()
    answer.put([1], [-0.5])
    assert (await anext(chunks)).data.ids == [1]
    answer.put([2], [-0.25])
    answer.put([3], [-1.0])
    second = await anext(chunks)
    assert (second.index, second.data.ids, second.data.logprobs) == (1, [2, 3], [-0.25, -1.0])
    answer.put([4])
    answer.end(DONE)
    last = await anext(chunks)
    assert (last.data.ids, last.data.logprobs, last.finish) == ([4], None, DONE)
    assert await anext(chunks, None) is None


async def test_only_the_first_end_counts_and_nothing_comes_after_it():
    answer = TokenAnswer(work("a"))
    answer.end(DONE)
    answer.end(Finish(reason="error"))
    answer.put([1])
    assert [chunk.finish async for chunk in answer.chunks()] == [DONE]
    assert answer.output_tokens == 0


async def test_a_reader_waits_without_turning():
    answer = TokenAnswer(work("a"))
    reader = asyncio.create_task(anext(answer.chunks()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not reader.done()
    answer.put([9])
    assert (await reader).data.ids == [9]


def test_a_payload_is_the_same_before_and_after_it_crossed_a_process():
    each = work("a", stop_tokens=(2, 3), stop=("\n",), seed=4, logprobs=2)
    crossed = decode_to_worker(encode(Run((each,)))).works[0]
    assert isinstance(crossed.payload, dict)
    assert generate_of(crossed) == generate_of(each)
