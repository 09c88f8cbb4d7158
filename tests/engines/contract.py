"""What every engine for language models must do. `test_contract.py` runs all of it on each engine."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from foreserve.core import Chunk, EngineInfo, Finish, Work
from foreserve.engines.generation import Generate
from foreserve.ports import Engine

PATIENCE_S = 60.0
"""Ends a test that hangs; no test is decided by how long it takes."""


def work(id: str, output: int = 4, prompt: Sequence[int] = (5, 6, 7), **terms) -> Work:
    """A request for `output` tokens exactly, greedy unless `terms` say otherwise."""
    terms = {"temperature": 0.0, "ignore_eos": True, **terms}
    payload = Generate(prompt=list(prompt), max_tokens=output, **terms)
    return Work(id=id, payload=payload, cost={"slots": 1.0}, arrival=0.0)


class Answer:
    """The chunks of one request, checked as they come."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.chunks: list[Chunk] = []
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish: Finish | None = None

    def take(self, chunk: Chunk) -> None:
        assert chunk.id == self.id
        assert self.finish is None, "a chunk after the finish"
        assert chunk.index == len(self.chunks), "indices are not consecutive"
        self.chunks.append(chunk)
        self.finish = chunk.finish
        if chunk.data is not None:
            self.ids += chunk.data.ids
            self.logprobs += chunk.data.logprobs or []

    @property
    def reason(self) -> str:
        assert self.finish is not None, "no finish"
        return self.finish.reason


class Subject:
    """An engine that is started, whatever its batching."""

    def __init__(self, engine: Engine, info: EngineInfo) -> None:
        self.engine = engine
        self.info = info
        self.continuous = info.batching == "continuous"
        self.slots = int(info.capacity["slots"])
        self.context = int(info.facts["context_tokens"])
        self.answers: dict[str, Answer] = {}

    async def run(self, *works: Work) -> list[Answer]:
        """Run them together to their ends."""
        for each in works:
            self.answers[each.id] = Answer(each.id)
        async with asyncio.timeout(PATIENCE_S):
            if self.continuous:
                await asyncio.gather(*(self._one(each) for each in works))
            else:
                async with aclosing(self.engine.run_batch(works)) as steps:
                    async for chunks in steps:
                        for chunk in chunks:
                            self.answers[chunk.id].take(chunk)
        return [self.answers[each.id] for each in works]

    async def _one(self, each: Work) -> None:
        async with aclosing(self.engine.run(each)) as chunks:
            async for chunk in chunks:
                self.answers[each.id].take(chunk)

    async def begun(self, id: str) -> None:
        """Wait for the first chunk of a request that runs."""
        async with asyncio.timeout(PATIENCE_S):
            while id not in self.answers or not self.answers[id].chunks:  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def idle(self) -> None:
        """Wait until the engine holds nothing."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self.engine.load()).running:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


class Contract:
    """The tests. A subclass has the fixture `subject` and the figures of its engine."""

    long = 40  # output tokens that take far longer than anything else in a test does

    async def test_an_answer_is_numbered_ended_once_and_counted(self, subject):
        (answer,) = await subject.run(work("a", output=6))
        assert answer.reason == "length"
        assert len(answer.ids) == 6
        assert answer.finish.usage["prompt_tokens"] == 3
        assert answer.finish.usage["output_tokens"] == 6
        assert answer.chunks[-1].finish is answer.finish

    async def test_all_slots_at_once_with_answers_of_different_length(self, subject):
        works = [work(f"r{i}", output=1 + 3 * i, prompt=range(1, 2 + i)) for i in range(subject.slots)]
        answers = await subject.run(*works)
        assert [len(answer.ids) for answer in answers] == [1 + 3 * i for i in range(subject.slots)]
        assert {answer.reason for answer in answers} == {"length"}
        await subject.idle()

    async def test_what_does_not_fit_the_context_is_rejected_and_the_rest_runs(self, subject):
        prompt_too_long = work("prompt", prompt=[1] * (subject.context + 1))
        together_too_long = work("both", prompt=[1] * 10, output=subject.context - 9)
        empty = work("empty", prompt=[])
        fine = work("fine")
        answers = await subject.run(prompt_too_long, together_too_long, empty, fine)
        assert [answer.reason for answer in answers] == ["rejected", "rejected", "rejected", "length"]
        for answer in answers[:3]:
            assert answer.ids == []
            assert answer.finish.error

    async def test_a_context_is_used_to_its_last_token(self, subject):
        (answer,) = await subject.run(work("a", prompt=[1] * (subject.context - 2), output=2))
        assert (answer.reason, len(answer.ids)) == ("length", 2)

    async def test_cancel_ends_it_and_lets_others_run(self, subject):
        running = asyncio.create_task(subject.run(work("a", output=self.long), work("b", output=self.long)))
        await subject.begun("a")
        await subject.engine.cancel("a")
        await subject.engine.cancel("a")
        await subject.engine.cancel("nobody")
        cancelled, other = await running
        assert cancelled.reason == "cancelled"
        assert len(cancelled.ids) < self.long
        assert (other.reason, len(other.ids)) == ("length", self.long)
        await subject.idle()
        (after,) = await subject.run(work("c"))
        assert after.reason == "length"

    async def test_leaving_the_iterator_early_cancels(self, subject):
        runs = (subject.engine.run(work(f"left{i}", output=self.long)) for i in range(subject.slots))
        for run in runs if subject.continuous else [next(runs)]:
            async with aclosing(run):
                async for _ in run:
                    break
        await subject.idle()
        answers = await subject.run(*(work(f"r{i}") for i in range(subject.slots)))
        assert {answer.reason for answer in answers} == {"length"}

    async def test_a_late_request_runs_while_an_earlier_one_decodes(self, subject):
        if not subject.continuous:
            pytest.skip("a static batch takes no late request")
        ended: list[str] = []
        early = asyncio.create_task(subject.run(work("early", output=self.long)))
        early.add_done_callback(lambda _: ended.append("early"))
        await subject.begun("early")
        await subject.run(work("late", output=2))
        ended.append("late")
        await early
        assert ended == ["late", "early"]

    async def test_more_kv_than_there_is_still_ends_every_request(self, tight):
        """`tight` is an engine whose slots could hold more than its KV cache does."""
        kv = tight.info.capacity["kv_tokens"]
        output = int(kv / tight.slots * 1.5)
        answers = await tight.run(*(work(f"r{i}", output=output, prompt=range(1, 9)) for i in range(tight.slots)))
        assert {answer.reason for answer in answers} == {"length"}
        assert {len(answer.ids) for answer in answers} == {output}
        await tight.idle()

    async def test_what_is_cancelled_frees_its_kv_tokens(self, tight):
        kv = int(tight.info.capacity["kv_tokens"])
        most = work("most", output=kv - 40)
        running = asyncio.create_task(tight.run(most))
        await tight.begun("most")
        await tight.engine.cancel("most")
        assert (await running)[0].reason == "cancelled"
        (answer,) = await tight.run(work("again", output=8, prompt=[1] * (kv - 40)))
        assert answer.reason == "length"
        await tight.idle()
        assert (await tight.engine.load()).kv_fraction == 0.0

    async def test_load_counts_what_runs(self, subject):
        assert (await subject.engine.load()).running == 0
        running = asyncio.create_task(subject.run(work("a", output=self.long)))
        await subject.begun("a")
        assert (await subject.engine.load()).running == 1
        await running
        await subject.idle()


class ModelContract:
    """What an engine with real weights must do beside."""

    async def test_a_stop_token_ends_the_answer_is_counted_and_not_given_out(self, subject):
        (whole,) = await subject.run(work("whole", output=12))
        stop = whole.ids[4]
        before = whole.ids.index(stop)
        (answer,) = await subject.run(work("b", output=12, ignore_eos=False, stop_tokens=(stop,)))
        assert answer.reason == "stop"
        assert answer.ids == whole.ids[:before]
        assert answer.finish.usage["output_tokens"] == before + 1
        (ignoring,) = await subject.run(work("c", output=12, stop_tokens=(stop,)))
        assert ignoring.ids == whole.ids

    async def test_a_seed_repeats_and_its_absence_varies(self, subject):
        terms = {"output": 12, "temperature": 1.5}
        answers = [(await subject.run(work(f"s{i}", seed=7, **terms)))[0].ids for i in range(2)]
        assert answers[0] == answers[1]
        together = await subject.run(*(work(f"t{i}", seed=7, **terms) for i in range(2)))
        assert together[0].ids == together[1].ids
        free = {tuple((await subject.run(work(f"u{i}", **terms)))[0].ids) for i in range(4)}
        assert len(free) > 1

    async def test_log_probabilities_come_with_every_token_and_only_when_asked_for(self, subject):
        asked, not_asked = await subject.run(work("a", output=5, logprobs=0), work("b", output=5))
        assert len(asked.logprobs) == len(asked.ids) == 5
        assert all(logprob <= 0 for logprob in asked.logprobs)
        assert not_asked.logprobs == []

    async def test_token_ids_that_do_not_exist_are_rejected(self, subject):
        answers = await subject.run(work("a", prompt=[-1]), work("b", prompt=[10**6]), work("c"))
        assert [answer.reason for answer in answers] == ["rejected", "rejected", "length"]

    async def test_penalties_change_what_repeats(self, subject):
        (plain,) = await subject.run(work("a", output=30))
        (penalised,) = await subject.run(work("b", output=30, frequency_penalty=2.0, presence_penalty=2.0))
        assert len(set(penalised.ids)) > len(set(plain.ids))
