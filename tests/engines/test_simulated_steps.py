"""The step model: vectors worked out by hand, and agreement with a plain model that takes every step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreserve.engines.profile import DecodeTable, EngineProfile, PrefillTable, linear
from foreserve.engines.simulated_answering import Answering
from foreserve.engines.simulated_static import StaticSteps
from foreserve.engines.simulated_steps import ContinuousSteps
from tests.engines.simulated_reference import Plain, Reference

CLOSE = pytest.approx


def profile(**terms):
    """0.01 s a prompt token; 0.1 s a step and 0.05 s more for each further sequence."""
    return EngineProfile(
        **{
            "slots": 4,
            "kv_tokens": 4096,
            "context_tokens": 4096,
            "prefill": PrefillTable(tokens=[0, 100], before=[0], seconds=[[0.0], [1.0]]),
            "decode": DecodeTable(sequences=[1, 2], context=[0], seconds=[[0.1], [0.15]]),
            "block_tokens": 4,
            **terms,
        }
    )


def play(steps, *arrivals, until=None):
    """Adds (time, sequence) pairs, at their time. Returns (time, id, tokens, end) in order."""
    out, left = [], sorted(arrivals, key=lambda pair: pair[0])
    while True:
        at = steps.next_at()
        if left and (at is None or left[0][0] < at):
            now, sequence = left.pop(0)
            assert steps.advance(now) == []
            steps.add(sequence, now)
        elif at is None or (until is not None and at > until):
            return out
        else:
            out += [(at, sequence.id, tokens, end) for sequence, tokens, end in steps.advance(at)]


def test_two_requests_share_a_step_that_computes_both_prompts():
    steps = ContinuousSteps(profile(max_batched_tokens=64))
    out = play(steps, (0.0, Answering("a", 10, 3)), (0.0, Answering("b", 20, 5)))
    assert out == [
        (CLOSE(0.3), "a", 1, None),  # 30 tokens in one step
        (CLOSE(0.3), "b", 1, None),
        (CLOSE(0.6), "a", 2, "stop"),  # two steps of 0.15
        (CLOSE(0.8), "b", 4, "stop"),  # two of 0.1
    ]


def test_a_long_prompt_is_computed_in_parts_while_others_decode():
    steps = ContinuousSteps(profile(max_batched_tokens=16, mixing=0.5))
    out = play(steps, (0.0, Answering("a", 10, 8)), (0.15, Answering("b", 40, 2)))
    # a: 0.1, then a step to 0.2. b's parts beside a's decoding: 15 + 15 + 10 tokens, each with half of 0.1 s.
    ends = [0.4, 0.6, 0.75]
    assert out == [
        (CLOSE(0.1), "a", 1, None),
        (CLOSE(ends[2]), "b", 1, None),
        (CLOSE(0.9), "b", 1, "stop"),  # a has made 1 + 1 + 3 = 5 at 0.75, and one more here
        (CLOSE(1.1), "a", 7, "stop"),
    ]


def test_two_prompts_share_what_is_left_of_a_step_in_order_of_arrival():
    steps = ContinuousSteps(profile(max_batched_tokens=16))
    out = play(steps, (0.0, Answering("a", 20, 1)), (0.0, Answering("b", 12, 1)))
    # 16 of a; 4 of a and 12 of b.
    assert out == [(CLOSE(0.32), "a", 1, "stop"), (CLOSE(0.32), "b", 1, "stop")]


def test_without_a_bound_a_prompt_is_computed_whole_and_decoding_stands_still():
    steps = ContinuousSteps(profile())
    out = play(steps, (0.0, Answering("a", 10, 4)), (0.15, Answering("b", 40, 1)))
    assert out == [(CLOSE(0.1), "a", 1, None), (CLOSE(0.6), "b", 1, "stop"), (CLOSE(0.8), "a", 3, "stop")]


def test_the_context_grows_with_every_step():
    table = DecodeTable(sequences=[1], context=[0, 12, 100], seconds=[[0.1, 0.1, 0.188]])
    steps = ContinuousSteps(profile(decode=table))
    # Steps hold 11, 12, 13, 14 tokens: 0.1 s up to 12, a millisecond more for each token after.
    out = play(steps, (0.0, Answering("a", 10, 5)))
    assert out == [(CLOSE(0.1), "a", 1, None), (CLOSE(0.1 + 0.1 + 0.1 + 0.101 + 0.102), "a", 4, "stop")]


def test_who_comes_waits_for_the_step_that_runs():
    steps = ContinuousSteps(profile(max_batched_tokens=64))
    out = play(steps, (0.0, Answering("a", 10, 5)), (0.25, Answering("b", 10, 1)))
    assert (CLOSE(0.3 + 0.1 + 0.1), "b", 1, "stop") in out


def test_who_is_ready_later_joins_later():
    steps = ContinuousSteps(profile(max_batched_tokens=64))
    out = play(steps, (0.0, Answering("a", 10, 9, ready=0.05)), (0.25, Answering("b", 10, 1, ready=0.51)))
    assert out[0] == (CLOSE(0.15), "a", 1, None)
    assert out[1] == (CLOSE(0.55 + 0.2), "b", 1, "stop")


def test_slots_bound_how_many_run():
    steps = ContinuousSteps(profile(slots=1))
    out = play(steps, (0.0, Answering("a", 10, 2)), (0.0, Answering("b", 10, 1)))
    assert out[-1] == (CLOSE(0.3), "b", 1, "stop")


def test_a_full_kv_cache_preempts_the_newest_by_blocks():
    steps = ContinuousSteps(profile(kv_tokens=32, max_batched_tokens=64))
    out = play(steps, (0.0, Answering("a", 10, 12)), (0.0, Answering("b", 10, 7)))
    # 8 blocks. Each holds 3 blocks up to 12 tokens and 4 up to 16, with 6 tokens made; the next step has no room.
    assert steps.preemptions == 1
    began = 0.2 + 5 * 0.15
    a = began + 6 * 0.1
    assert out[2:] == [(CLOSE(a), "a", 11, "stop"), (CLOSE(a + 0.16), "b", 6, "stop")]  # 16 tokens computed anew


def test_a_prefix_that_is_still_there_costs_nothing():
    steps = ContinuousSteps(profile(prefix_caching=True, max_batched_tokens=64))
    first, again, other = (
        Answering("first", 20, 1, units=(1, 2), unit=8),
        Answering("again", 20, 1, units=(1, 2), unit=8),
        Answering("other", 20, 1, units=(1, 7), unit=8),
    )
    out = play(steps, (0.0, first), (1.0, again), (2.0, other))
    assert [at for at, *_ in out] == [CLOSE(0.2), CLOSE(1.04), CLOSE(2.12)]
    assert [each.cached for each in (first, again, other)] == [0, 16, 8]
    assert steps.hits == 24


def test_of_a_prompt_that_is_wholly_there_the_last_block_is_computed():
    steps = ContinuousSteps(profile(prefix_caching=True))
    again = Answering("again", 16, 1, units=(1, 2), unit=8)
    out = play(steps, (0.0, Answering("first", 16, 1, units=(1, 2), unit=8)), (1.0, again))
    assert (out[1][0], again.cached) == (CLOSE(1.04), 12)


def test_shared_blocks_are_counted_once_and_leave_when_room_is_needed():
    steps = ContinuousSteps(profile(prefix_caching=True, kv_tokens=40, max_batched_tokens=64))
    for id in "ab":
        steps.add(Answering(id, 17, 3, units=(1, 2), unit=8), 0.0)
    steps.advance(0.34)
    assert steps.kv_fraction(0.34) == CLOSE((4 + 1 + 1) / 10)  # 4 blocks shared, one each for tokens 17 to 20
    assert not steps.waiting
    play(steps)
    assert steps.kv_fraction(9.0) == 0.0
    play(steps, (10.0, Answering("big", 36, 1)))
    late = Answering("late", 17, 1, units=(1, 2), unit=8)
    play(steps, (20.0, late))
    assert late.cached == 0


def test_a_slower_engine_takes_longer_from_the_next_step_on():
    steps = ContinuousSteps(profile())
    steps.add(Answering("a", 10, 4), 0.0)
    steps.advance(0.1)
    steps.slow(3.0, 0.15)
    assert play(steps) == [(CLOSE(0.1 + 0.1 + 0.3 + 0.3), "a", 3, "stop")]


def test_the_last_step_is_the_newest_that_is_over():
    steps = ContinuousSteps(profile(max_batched_tokens=64))
    assert steps.last_step_s(0.0) is None
    steps.add(Answering("a", 10, 40), 0.0)
    steps.advance(0.1)
    assert steps.last_step_s(0.15) == CLOSE(0.1)  # the prompt's
    steps.add(Answering("b", 30, 40), 0.15)
    steps.advance(0.7)
    assert steps.last_step_s(0.7) == CLOSE(0.4)
    assert steps.last_step_s(0.76) == CLOSE(0.15)


def test_progress_is_what_a_stream_would_have_given():
    steps = ContinuousSteps(profile())
    steps.add(Answering("a", 10, 9), 0.0)
    steps.advance(0.1)
    assert [(s.id, tokens, end) for s, tokens, end in steps.progress(0.45)] == [("a", 3, None)]
    assert play(steps) == [(CLOSE(0.9), "a", 5, "stop")]


TABLES = {
    "prefill": PrefillTable(
        tokens=[1, 16, 64],
        before=[0, 100],
        seconds=[[0.0031713, 0.0052311], [0.0131713, 0.0182311], [0.0531719, 0.0719233]],
    ),
    "decode": DecodeTable(
        sequences=[1, 2, 6],
        context=[4, 40, 90],
        seconds=[
            [0.0101117, 0.0113913, 0.0119017],
            [0.0111117, 0.0133913, 0.0139017],
            [0.0181117, 0.0203913, 0.0259017],
        ],
    ),
}


@st.composite
def scenes(draw):
    block = draw(st.sampled_from([1, 4, 16]))
    terms = {
        "slots": draw(st.integers(1, 6)),
        "kv_tokens": block * draw(st.integers(-(-130 // block), -(-400 // block))),
        "context_tokens": 128,
        "block_tokens": block,
        "max_batched_tokens": draw(st.sampled_from([None, 8, 24, 64])),
        "mixing": draw(st.sampled_from([0.0, 0.7, 1.0])),
        "change_s": draw(st.sampled_from([0.0, 0.0311])),
        "prefix_caching": draw(st.booleans()),
        **TABLES,
    }
    every = draw(st.sampled_from([None, 1, 5]))
    overhead = draw(st.sampled_from([0.0, 0.0217]))
    at, arrivals = 0.0, []
    for number in range(draw(st.integers(1, 14))):
        at += draw(st.integers(0, 12)) * 0.0173207
        prompt = draw(st.integers(1, 90))
        units = tuple(1000 * draw(st.integers(0, 2)) + i for i in range(prompt // 16))
        arrivals.append((at, f"r{number}", prompt, draw(st.integers(1, 38)), every, units, at + overhead))
    cancels = [
        (draw(st.integers(1, 80)) * 0.0171313, f"r{draw(st.integers(0, 13))}") for _ in range(draw(st.integers(0, 3)))
    ]
    return EngineProfile(**terms), arrivals, sorted(cancels)


@settings(max_examples=300, deadline=None)
@given(scenes())
def test_stretches_in_closed_form_are_the_same_as_step_by_step(scene):
    profile, arrivals, cancels = scene
    plain = {row[1]: Plain(*row[1:5], row[5], 16, row[6]) for row in arrivals}
    reference = Reference(profile, [(row[0], plain[row[1]]) for row in arrivals], cancels)
    expected = reference.run()

    steps = ContinuousSteps(profile)
    known, out = {}, []
    events = [(row[0], 1, n, row) for n, row in enumerate(arrivals)]
    events = sorted(events + [(at, 0, n, (at, id)) for n, (at, id) in enumerate(cancels)])
    while events or steps.next_at() is not None:
        at = steps.next_at()
        if events and (at is None or events[0][0] < at):
            now, is_arrival, _, row = events.pop(0)
            assert steps.advance(now) == []
            if is_arrival:
                _, id, prompt, output, every, units, ready = row
                known[id] = Answering(id, prompt, output, every=every, units=units, unit=16, ready=ready)
                steps.add(known[id], now)
            elif row[1] in known and (emission := steps.cancel(known[row[1]], now)) is not None:
                out.append((now, row[1], *emission[1:]))
            assert steps.kv_fraction(now) <= 1.0
        else:
            out += [(at, sequence.id, tokens, end) for sequence, tokens, end in steps.advance(at)]
    assert _by_request(out) == _by_request(expected)
    assert steps.preemptions == reference.preemptions
    assert [known[id].cached or 0 for id in known] == [plain[id].cached or 0 for id in known]
    assert steps.kv_fraction(1e9) == 0.0


def _by_request(events):
    answers = {}
    for at, id, tokens, end in events:
        answers.setdefault(id, []).append(
            (CLOSE(at, rel=1e-9), tokens, end and ("cancelled" if end == "cancelled" else "end"))
        )
    return answers


def test_a_static_batch_never_holds_more_than_there_is():
    steps = StaticSteps(linear(batching="static", slots=2, kv_tokens=30, context_tokens=30, prefill_s_per_token=0.1))
    rows = [Answering(f"q{n}", 20, 5) for n in range(2)]
    steps.add(rows, 0.0)
    assert steps.kv_fraction(0.1) == 1.0
    assert [(row.id, end) for row, _, end in steps.advance(100.0)] == [("q0", "memory"), ("q1", "memory")]
