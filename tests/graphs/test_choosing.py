import numpy as np
import pytest

from foreserve.graphs.choosing import choose_level, query_edges
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.schema import NODE, Schema
from foreserve.graphs.split import split
from foreserve.graphs.taking_apart import take_apart
from tests.graphs.models import loaded, net

SCHEMA = Schema.homogeneous(4)


@pytest.mark.parametrize("kind", ["gcn", "sage", "gat"])
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_the_edges_foreseen_are_those_that_a_query_reads(kind: str, level: int) -> None:
    program = take_apart(net(kind, [4, 5, 6, 3]), SCHEMA)
    graph = LiveGraph(program, loaded(SCHEMA, 200, 800), level)
    for node in range(20):
        foreseen = query_edges(split(program, level), graph.store, program.outputs[NODE], np.array([node]))
        assert foreseen == graph.query(NODE, [node]).edges


def test_a_dearer_query_lets_updates_be_cheaper() -> None:
    program = take_apart(net("gcn", [4, 5, 6, 3]), SCHEMA)
    store = loaded(SCHEMA, 2_000, 10_000, skew=1.5)
    levels = [choose_level(program, store, most) for most in (0, 100, 10_000, 10**9)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == 2
    assert levels[-1] == 0
    assert choose_level(program, store, 100) == levels[1]
