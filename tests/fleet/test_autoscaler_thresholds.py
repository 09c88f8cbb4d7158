from __future__ import annotations

import pytest

from foreserve.core import EngineLoad
from foreserve.errors import ConfigError
from foreserve.fleet.autoscaler_thresholds import Thresholds
from foreserve.scaling import ReplicaPhase, ScalingView, Waiting
from tests.fleet.views import replica, view


def held(*shares: float | None, phase: ReplicaPhase = "ready", known: bool = True) -> ScalingView:
    """Replicas whose KV caches are so full."""
    return view([
        replica(n, phase, known=known, load=EngineLoad(kv_fraction=share)) for n, share in enumerate(shares)
    ])  # fmt: skip


def test_one_more_above_one_fewer_below_and_none_between():
    for shares, wanted in (((0.95, 0.9), 3), ((0.1, 0.2), 1), ((0.1, 0.9), 2)):
        assert Thresholds(above=0.9, below=0.2).decide(held(*shares), 0.0).wanted == wanted


def test_it_looks_every_so_often():
    policy = Thresholds(look_s=10.0)
    assert policy.decide(held(0.95), 0.0).wanted == 2
    assert policy.decide(held(0.95), 8.0).wanted == 1
    assert policy.decide(held(0.95), 10.0).wanted == 2


def test_while_one_starts_there_is_no_further_one():
    stand = view([replica(0, load=EngineLoad(kv_fraction=0.99)), replica(1, "starting")])
    assert Thresholds().decide(stand, 0.0).wanted == 2


def test_without_a_cache_slots_tell():
    assert Thresholds().decide(view([replica(0, running=8)]), 0.0).wanted == 2
    assert Thresholds().decide(view([replica(0, running=1), replica(1, running=1)]), 0.0).wanted == 1


def test_a_queue_is_full_and_what_is_not_known_is_not_idle():
    waits = view([replica(0, running=2)], waiting=Waiting(count=2, oldest_s=3.0))
    assert Thresholds().decide(waits, 0.0).wanted == 2
    assert Thresholds().decide(held(0.0, 0.0, known=False), 0.0).wanted == 2
    assert Thresholds().decide(view([]), 0.0).wanted == 0


def test_thresholds_must_make_sense():
    with pytest.raises(ConfigError, match=r"below is 0\.9 and above 0\.2"):
        Thresholds(above=0.2, below=0.9)
