import asyncio

import pytest

from foreserve.errors import BadRequest
from foreserve.graphs.changes import Changes
from foreserve.graphs.intake import Intake
from foreserve.graphs.schema import EDGE
from foreserve.graphs.writer import Receipt, Submitted


def _update(changes: int) -> Submitted:
    return Submitted(Changes().insert_edges(EDGE, [0] * changes, [1] * changes))


def test_a_batch_has_as_many_as_it_may_and_at_least_one() -> None:
    async def main() -> None:
        intake = Intake(10, 0.0)
        updates = [_update(count) for count in (4, 6, 1, 30, 2)]
        for update in updates:
            intake.add(update, 0.0)
        taken = []
        while intake.waiting:
            assert intake.news.is_set()
            batch = intake.take()
            taken.append([len(each.changes) for each in batch])
            intake.settle([Receipt(2, 1)] * len(batch))
        assert taken == [[4, 6], [1], [30], [2]]
        assert not intake.news.is_set()

    asyncio.run(main())


def test_the_next_one_gathers_until_it_is_old_or_large_enough() -> None:
    async def main() -> None:
        intake = Intake(10, 0.5)
        first = intake.add(_update(4), 1.0)
        assert intake.wait_s(1.2) == pytest.approx(0.3)
        assert intake.wait_s(9.0) == 0.0
        second = intake.add(_update(6), 1.1)
        assert intake.wait_s(1.2) == 0.0
        assert intake.oldest == 1.0
        intake.take()
        assert (len(intake), intake.waiting, intake.oldest) == (2, 0, 1.0)
        third = intake.add(_update(1), 3.0)
        first.done.cancel()
        intake.settle([Receipt(2, 4), BadRequest("no")])
        assert isinstance(second.done.exception(), BadRequest)
        assert (len(intake), intake.oldest, third.done.done()) == (1, 3.0, False)

    asyncio.run(main())
