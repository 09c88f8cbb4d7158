from __future__ import annotations

import pytest

from foreserve.core import EngineLoad
from foreserve.errors import ConfigError
from foreserve.fleet.autoscaler_thresholds import Thresholds
from foreserve.scaling import ReplicaView, Waiting
from tests.fleet.views import replica, view


def cache(n: int, fraction: float) -> ReplicaView:
    return replica(n, running=1, load=EngineLoad(kv_fraction=fraction))


@pytest.mark.parametrize(
    ("stand", "wanted"),
    [
        ([replica(0, running=8)], 2),
        ([replica(0, running=5)], 1),
        ([replica(0), replica(1, running=2)], 1),
        ([replica(0), replica(1, known=False)], 2),
        ([replica(0, running=8), replica(1, "starting")], 2),
        ([replica(0), replica(1, "starting")], 2),
        ([cache(0, 0.95), cache(1, 0.9)], 3),
        ([cache(0, 0.9), cache(1, 0.5)], 2),
        ([cache(0, 0.1), cache(1, 0.2)], 1),
    ],
    ids=[
        "full", "between", "nearly empty", "one is not known", "full while one starts", "empty while one starts",
        "caches full", "caches between", "caches empty",
    ],
)  # fmt: skip
def test_one_more_above_one_fewer_below(stand: list[ReplicaView], wanted: int):
    assert Thresholds(above=0.9, below=0.2).decide(view(stand), 0.0).wanted == wanted


def test_what_has_waited_means_that_they_are_full():
    stand = [replica(0, running=4)]
    just, long = (Waiting(count=3, oldest_s=s) for s in (0.1, 2.0))
    assert Thresholds().decide(view(stand, waiting=just), 0.0).wanted == 1
    assert Thresholds().decide(view(stand, waiting=long), 0.0).wanted == 2


def test_it_looks_only_so_often():
    policy, full = Thresholds(look_s=10.0), view([replica(0, running=8)])
    assert [policy.decide(full, now).wanted for now in (0.0, 2.0, 9.9, 10.0)] == [2, 1, 1, 2]


def test_none_comes_back_for_one_that_waits():
    assert Thresholds().decide(view(0, waiting=Waiting(count=1)), 0.0).wanted == 1


@pytest.mark.parametrize("options", [{"above": 0.2, "below": 0.2}, {"below": 0.0}])
def test_thresholds_that_make_no_sense_are_refused(options: dict[str, float]):
    with pytest.raises(ConfigError, match="valid: 0 < below < above"):
        Thresholds(**options)
