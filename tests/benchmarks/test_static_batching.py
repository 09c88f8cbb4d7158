import pytest
from benchmarks.mixes import Ask
from benchmarks.static_batching import CAUTIOUS, KV_TOKENS, LONGEST, SIDES, trial_of

from foreserve.dispatch.batching import FixedBatches
from foreserve.dispatch.magnus import Magnus
from foreserve.loadgen.records import Ending, Result


def ask(tokens: int) -> Ask:
    return Ask(messages=[], response="", key="", prompt_tokens=5, output_tokens=tokens, tenant="ada")


def result(index: int, due: float, ended: float, tokens: int, ending: Ending = Ending.DONE) -> Result:
    return Result(
        index=index, due=due, sent=due, ended=ended, ending=ending, output_tokens=tokens, finish_reason="stop"
    )


def test_figures_count_what_is_valid_and_what_was_computed():
    results = [result(0, 0.0, 4.0, 10), result(1, 1.0, 6.0, 30), result(2, 2.0, 3.0, 0, Ending.TIMEOUT)]
    trial = trial_of([ask(10), ask(30), ask(5)], results, [(2, 30)])
    assert (trial.per_s, trial.mean_s, trial.lost) == (2 / 6, 4.5, 1)
    assert (trial.valid, trial.computed, trial.batches) == (40, 60, [2])


def test_an_answer_of_another_length_is_no_measurement():
    with pytest.raises(RuntimeError, match="9 tokens, 10 are true"):
        trial_of([ask(10)], [result(0, 0.0, 1.0, 9)], [(1, 9)])


def test_every_side_is_a_policy_of_ours():
    for side in SIDES.values():
        {"fixed": FixedBatches, "magnus": Magnus}[side.policy](**side.options)
    assert CAUTIOUS * 2 * LONGEST <= KV_TOKENS
