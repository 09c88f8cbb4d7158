from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve.core import Outcome, OutcomeKind
from foreserve.fleet.capacity import MOST_MIXES, CapacityProfile, CapacityState, Known, done, mix_of
from foreserve.scaling import Capacity, Waiting
from tests.fleet.views import replica

LLM = {"requests": 1.0, "input_tokens": 512.0, "output_tokens": 128.0}


def ended(took: float = 2.0, **usage: float) -> Outcome:
    return Outcome(id="r", service="s", kind=OutcomeKind.DONE, arrival=0.0, started=1.0, ended=1.0 + took, usage=usage)


def serve(
    profile: CapacityProfile,
    *,
    rate: float,
    running: int,
    begin: float = 0.0,
    seconds: float = 60.0,
    waiting: int = 0,
    replicas: int = 1,
    took: float = 2.0,
    **usage: float,
) -> float:
    """So many requests a second end on all replicas together, each running `running` of 8; when it is over."""
    stand = [replica(n, running=running) for n in range(replicas)]
    finished = 0.0
    for step in range(int(seconds / 2.0)):
        profile.looked(stand, Waiting(count=waiting), begin + 2.0 * step)
        while finished < rate * 2.0 * (step + 1):
            profile.ended(ended(took, **usage))
            finished += 1.0
    profile.looked(stand, Waiting(count=waiting), begin + seconds)
    return begin + seconds


def at(profile: CapacityProfile, mix: dict[str, float] | None = None) -> Capacity:
    capacity = profile.at(mix or {"requests": 1.0})
    assert capacity is not None
    return capacity


def test_what_was_done_of_a_request_by_measure():
    assert done(ended(3.0, prompt_tokens=10.0, output_tokens=5.0)) == {
        "requests": 1.0, "seconds": 3.0, "input_tokens": 10.0, "output_tokens": 5.0,
    }  # fmt: skip
    assert done(msgspec.structs.replace(ended(), started=None)) == {}


def test_a_mix_goes_by_powers_of_two():
    assert mix_of(LLM) == (("input_tokens", 9), ("output_tokens", 7))
    assert mix_of({name: 30 * amount for name, amount in LLM.items()}) == mix_of(LLM)
    assert mix_of({"requests": 2.0, "seconds": 9.0}) == ()
    assert mix_of({}) == ()


def test_nothing_is_known_at_first():
    assert CapacityProfile().at(LLM) is None


def test_what_full_replicas_get_done_is_what_they_can_do():
    profile = CapacityProfile()
    serve(profile, rate=8.0, running=8, replicas=2, prompt_tokens=512.0, output_tokens=128.0)
    capacity = at(profile, LLM)
    assert capacity.per_s["requests"] == pytest.approx(4.0, rel=0.05)
    assert capacity.per_s["output_tokens"] == pytest.approx(512.0, rel=0.05)
    assert "on full replicas, at about 512 input tokens and 128 output tokens a request" in capacity.why


def test_a_queue_of_whole_batches_says_that_they_are_full():
    profile = CapacityProfile()
    serve(profile, rate=2.0, running=1, waiting=8)
    assert "on full replicas" in at(profile).why
    half = CapacityProfile()
    serve(half, rate=2.0, running=1, waiting=7)
    assert "first guess" in at(half).why


def test_the_first_requests_already_allow_a_guess():
    profile = CapacityProfile()
    serve(profile, rate=4.0, running=4, seconds=4.0, took=2.0)
    assert at(profile).per_s["requests"] == pytest.approx(4.0)
    assert "a first guess: 8 at once, 2 s each" in at(profile).why


def test_memory_that_is_full_is_so_only_while_something_waits_for_it():
    for oldest_s, words in ((0.2, "a first guess"), (2.0, "on full replicas")):
        profile = CapacityProfile()
        for now in range(0, 60, 2):
            profile.looked([replica(running=4, share=1.0)], Waiting(count=2, oldest_s=oldest_s), float(now))
            for _ in range(4):
                profile.ended(ended())
        assert words in at(profile).why


def test_a_guess_knows_that_memory_holds_fewer_than_there_are_slots():
    profile = CapacityProfile()
    for now in range(0, 60, 2):
        profile.looked([replica(running=10, share=0.5, slots=128.0)], Waiting(), float(now))
        for _ in range(10):
            profile.ended(ended(2.0))
    assert at(profile).why.startswith("a first guess: 20 at once, 2 s each")
    assert at(profile).per_s["requests"] == pytest.approx(10.0, rel=0.05)


def test_little_load_tells_nothing_but_how_long_a_request_takes():
    profile = CapacityProfile()
    serve(profile, rate=0.5, running=1, took=2.0)
    capacity = at(profile)
    assert capacity.per_s["requests"] == pytest.approx(4.0, rel=0.05)  # 8 slots, 2 s each
    assert capacity.why == "a first guess: 8 at once, 2 s each; no replica was full yet"


def test_a_guess_learns_that_requests_take_longer_beside_others():
    profile = CapacityProfile()
    # One at a time takes 1 s, four at once 2 s each: eight at once would take 3.3 s.
    for begin in range(0, 1200, 120):
        serve(profile, rate=1.0, running=1, took=1.0, begin=begin)
        serve(profile, rate=2.0, running=4, took=2.0, begin=begin + 60)
    assert at(profile).per_s["requests"] == pytest.approx(8 / (2.0 + 4 / 3), rel=0.05)


def test_a_guess_is_no_less_than_what_was_done_already():
    profile = CapacityProfile()
    serve(profile, rate=6.0, running=7, took=4.0)
    assert at(profile).per_s["requests"] >= 5.9


def test_when_they_have_been_full_the_guess_is_no_more_asked():
    profile = CapacityProfile()
    over = serve(profile, rate=0.5, running=1)
    serve(profile, rate=3.0, running=8, begin=over, took=2.6)
    assert at(profile).per_s["requests"] == pytest.approx(3.0, rel=0.05)


def test_what_was_measured_too_low_is_raised_by_what_is_done_with_room_to_spare():
    profile = CapacityProfile()
    over = serve(profile, rate=1.0, running=8)
    serve(profile, rate=2.0, running=4, begin=over)
    assert 2.0 <= at(profile).per_s["requests"] < 2.3


def test_what_was_measured_too_low_is_raised_while_there_is_much_room():
    profile = CapacityProfile()
    over = serve(profile, rate=1.0, running=8)
    before = at(profile).per_s["requests"]
    serve(profile, rate=0.8, running=1, begin=over, took=2.0, seconds=1800.0)
    after = at(profile).per_s["requests"]
    assert before == pytest.approx(1.0, rel=0.05)
    # Of eight that could run 1.6 do: there is room for 2.5 times as many before half of them do.
    assert after == pytest.approx(0.8 * 2.5**0.5, rel=0.05)


def test_little_room_leaves_what_was_measured():
    profile = CapacityProfile()
    over = serve(profile, rate=2.0, running=8, took=4.0)
    before = at(profile).per_s["requests"]
    serve(profile, rate=1.8, running=6, begin=over, took=3.3, seconds=1800.0)
    assert at(profile).per_s["requests"] == pytest.approx(before, rel=0.02)


def test_a_mix_that_never_comes_again_does_not_keep_the_capacity_low():
    """A start under load is measured by the short requests that end first; what follows has others."""
    profile = CapacityProfile()
    over = serve(profile, rate=1.0, running=8, took=2.0, prompt_tokens=500.0, output_tokens=30.0)
    over = serve(profile, rate=0.8, running=2, begin=over, took=2.0, prompt_tokens=500.0, output_tokens=120.0)
    mix = {"requests": 1.0, "input_tokens": 500.0, "output_tokens": 120.0}
    before = at(profile, mix).per_s["requests"]
    serve(profile, rate=0.8, running=2, begin=over, took=2.0, seconds=1800.0, prompt_tokens=500.0, output_tokens=120.0)
    assert at(profile, mix).per_s["requests"] > 1.15 * before


def test_what_ends_right_after_a_change_began_before_it():
    profile = CapacityProfile()
    over = serve(profile, rate=1.0, running=2, took=20.0)
    known = at(profile).per_s
    for step in range(10):  # as many as before end while twelve more have begun
        profile.looked([replica(0, running=8)], Waiting(), over + 2.0 * step)
        profile.ended(ended(20.0))
        profile.ended(ended(20.0))
    assert at(profile).per_s == known


def test_while_one_leaves_nothing_is_measured():
    profile = CapacityProfile()
    for now in range(0, 60, 2):
        profile.looked([replica(0, running=8), replica(1, "isolated", running=1)], Waiting(), float(now))
        for _ in range(8):
            profile.ended(ended())
    assert not profile.state().mixes


def test_it_follows_what_changes():
    profile = CapacityProfile()
    over = serve(profile, rate=4.0, running=8)
    serve(profile, rate=2.0, running=8, begin=over, seconds=600.0)
    assert at(profile).per_s["requests"] == pytest.approx(2.0, rel=0.05)


def test_each_mix_has_its_own():
    profile = CapacityProfile()
    over = serve(profile, rate=8.0, running=8, took=1.0, prompt_tokens=500.0, output_tokens=30.0)
    serve(profile, rate=1.0, running=8, took=8.0, begin=over, prompt_tokens=500.0, output_tokens=1000.0)
    short = at(profile, {"requests": 9.0, "input_tokens": 4500.0, "output_tokens": 280.0})
    long = at(profile, {"requests": 2.0, "input_tokens": 1000.0, "output_tokens": 2100.0})
    assert short.per_s["requests"] == pytest.approx(8.0, rel=0.1)
    assert long.per_s["requests"] == pytest.approx(1.0, rel=0.1)


def test_a_mix_that_was_never_seen_is_judged_by_what_its_requests_cost():
    profile = CapacityProfile()
    over = serve(profile, rate=8.0, running=8, took=1.0, prompt_tokens=500.0, output_tokens=30.0)
    serve(profile, rate=1.0, running=8, took=8.0, begin=over, prompt_tokens=500.0, output_tokens=1000.0)
    found = at(profile, {"requests": 1.0, "input_tokens": 500.0, "output_tokens": 500.0}).per_s["requests"]
    assert found == pytest.approx(8 / 4.4, rel=0.15)  # half way between, as long as it takes
    # Nothing is known of what a resource costs that none has had.
    other = at(profile, {"requests": 1.0, "bytes": 500.0}).per_s["requests"]
    assert other == pytest.approx(1.0, rel=0.1)


def test_a_period_in_which_a_replica_came_or_left_tells_nothing():
    profile = CapacityProfile()
    serve(profile, rate=2.0, running=8)
    known = profile.state().mixes
    for now in range(0, 60, 2):
        profile.looked([replica(n, running=8) for n in range(1 + now // 2 % 2)], Waiting(), 100.0 + now)
        profile.ended(ended())
    assert profile.state().mixes == known


def test_what_did_not_end_well_was_work_too():
    profile = CapacityProfile()
    for now in range(0, 60, 2):
        profile.looked([replica(0, running=8)], Waiting(), float(now))
        for _ in range(8):
            profile.ended(msgspec.structs.replace(ended(output_tokens=10.0), kind=OutcomeKind.EXPIRED))
    assert at(profile).per_s["output_tokens"] == pytest.approx(40.0, rel=0.05)


def test_it_survives_a_restart():
    profile = CapacityProfile()
    serve(profile, rate=8.0, running=8, prompt_tokens=512.0, output_tokens=128.0)
    kept = msgspec.json.encode(profile.state())
    again = CapacityProfile.restored(msgspec.json.decode(kept, type=CapacityState))
    assert at(again, LLM) == at(profile, LLM)


def test_what_is_not_sound_is_not_taken_up():
    for known in (Known(full={"a": 1.0}, fit=[1.0]), Known(full={"a": float("nan")}), Known(full={"a": -1.0})):
        assert CapacityProfile.restored(CapacityState(mixes=[((("a", 1),), known)])).at(LLM) is None


def test_mixes_are_bounded():
    profile = CapacityProfile()
    over = 0.0
    for n in range(MOST_MIXES + 10):
        over = serve(profile, rate=4.0, running=8, begin=over, seconds=20.0, output_tokens=2.0**n)
    assert len(profile.state().mixes) == MOST_MIXES


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 20), st.floats(0.01, 30.0), st.integers(0, 20), st.integers(1, 3)),
        max_size=60,
    )
)
def test_whatever_comes_capacity_is_a_positive_finite_number(steps: list[tuple[int, int, float, int, int]]):
    profile, now = CapacityProfile(), 0.0
    for running, waiting, took, count, replicas in steps:
        profile.looked([replica(n, running=running) for n in range(replicas)], Waiting(count=waiting), now)
        for _ in range(count):
            profile.ended(ended(took, output_tokens=took))
        now += 5.0
        capacity = profile.at({"requests": 1.0, "output_tokens": took})
        if capacity is not None:
            assert capacity.why
            assert all(0 < amount < 1e6 for amount in capacity.per_s.values())


def test_what_was_measured_of_one_mix_is_turned_into_another_by_what_requests_cost():
    profile = CapacityProfile()
    for prompt, answer, took in ((500.0, 30.0, 0.65), (500.0, 300.0, 6.05), (50.0, 300.0, 6.0)):
        for _ in range(200):
            profile.ended(ended(took, prompt_tokens=prompt, output_tokens=answer))
    serve(profile, rate=4.0, running=8, prompt_tokens=500.0, output_tokens=100.0, took=2.05)
    # Half the answer, the same prompt: nearly twice as many of them.
    mix = {"requests": 1.0, "input_tokens": 500.0, "output_tokens": 50.0}
    capacity = at(profile, mix)
    assert capacity.per_s["requests"] == pytest.approx(4.0 * 2.05 / 1.05, rel=0.1)
    assert capacity.per_s["output_tokens"] == pytest.approx(50.0 * capacity.per_s["requests"])
    assert capacity.per_s["input_tokens"] == pytest.approx(500.0 * capacity.per_s["requests"])
