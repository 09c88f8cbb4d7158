import numpy as np
import pytest

from foreserve.traces import families
from foreserve.traces.families import Families
from foreserve.traces.row import Header, TraceRow
from foreserve.traces.scaling import kept
from foreserve.traces.statistics import statistics

ROWS = 6000


class Conversations:
    """Turns of conversations, each with the blocks of those before it and one more, behind an instruction's blocks."""

    header = Header(name="talk", block_tokens=16)
    skipped = 0

    def __init__(self, instruction=()):
        rng = np.random.default_rng(5)
        turns: dict[int, int] = {}
        self.rows = []
        for at in range(ROWS):
            who = int(rng.integers(ROWS // 8))
            turns[who] = turns.get(who, 0) + 1
            prefix = (*instruction, *(1000 * (who + 1) + block for block in range(2 + turns[who])))
            self.rows.append(TraceRow(arrival=float(at), input_tokens=16 * len(prefix), prefix=prefix))

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return ROWS


@pytest.mark.parametrize("instruction", [(), tuple(range(1, 9))], ids=["bare", "instructed"])
@pytest.mark.parametrize("rate", [0.1, 0.5, 1.3])
def test_what_a_prefix_cache_saves_stays_nearly_as_it_was(rate, instruction):
    source = Conversations(instruction)
    before, after = statistics(source), statistics(kept(source, rate, seed=3))
    assert after.requests == pytest.approx(rate * ROWS, rel=0.25)
    assert after.prefix_seen == pytest.approx(before.prefix_seen, abs=0.05)
    assert before.prefix_seen > 0.6


def test_a_family_has_one_draw_for_each_seed():
    one, other = Families(1), Families(2)
    row = TraceRow(arrival=0.0, prefix=(7, 8))
    first = one.draw(row)
    assert first == one.draw(TraceRow(arrival=1.0, prefix=(7, 9))) != other.draw(row)
    assert first != one.draw(TraceRow(arrival=1.0, prefix=(9,)))
    assert len({one.draw(TraceRow(arrival=2.0)) for _ in range(100)}) == 100


def test_what_is_counted_is_bounded(monkeypatch):
    monkeypatch.setattr(families, "MOST_COUNTED", 100)
    drawn = Families(0)
    for n in range(1000):
        drawn.draw(TraceRow(arrival=0.0, prefix=(1, n + 10)))
    assert len(drawn._counts) <= 100
    assert drawn._counts[1] == 1000
