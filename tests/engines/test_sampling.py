import pytest

from foreserve.engines.generation import Generate

torch = pytest.importorskip("torch")

from foreserve.engines.sampling import RowSampler, left_padded, top_candidates  # noqa: E402


def sampler(**terms):
    return RowSampler(Generate(prompt=[1], max_tokens=10, **terms))


LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0])


def test_temperature_zero_takes_the_likeliest():
    assert sampler(temperature=0.0).choose(LOGITS) == 1


def test_draws_follow_the_distribution_and_the_seed():
    drawing = sampler(seed=1)
    draws = [drawing.choose(LOGITS) for _ in range(4000)]
    expected = torch.softmax(LOGITS, dim=-1)
    for token in range(4):
        assert draws.count(token) / 4000 == pytest.approx(float(expected[token]), abs=0.03)
    again = sampler(seed=1)
    assert [again.choose(LOGITS) for _ in range(50)] == draws[:50]


def test_seeds_of_any_size_and_sign_are_taken():
    for seed in (-1, 2**64 + 3):
        assert sampler(seed=seed).choose(LOGITS) in range(4)


def test_a_high_temperature_evens_out():
    drawing = sampler(seed=1, temperature=100.0)
    draws = [drawing.choose(LOGITS) for _ in range(2000)]
    assert min(draws.count(token) for token in range(4)) > 400


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, {1}), (0.6, {1}), (0.75, {1, 2}), (0.95, {0, 1, 2}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    # Probabilities of tokens 1, 2, 0, 3: 0.64, 0.24, 0.09, 0.03.
    drawing = sampler(seed=1, top_p=top_p)
    assert {drawing.choose(LOGITS) for _ in range(500)} == kept


def test_penalties_lower_what_was_generated_and_leave_the_logits_alone():
    presence = sampler(temperature=0.0, presence_penalty=1.5)
    before = LOGITS.clone()
    assert [presence.choose(LOGITS) for _ in range(3)] == [1, 2, 1]
    frequency = sampler(temperature=0.0, frequency_penalty=0.6)
    assert [frequency.choose(LOGITS) for _ in range(4)] == [1, 1, 2, 1]
    assert torch.equal(LOGITS, before)


def test_top_candidates_come_best_first():
    logprobs = torch.log_softmax(LOGITS, dim=-1)
    ids, values = zip(*top_candidates(logprobs, 3), strict=True)
    assert ids == (1, 2, 0)
    assert list(values) == sorted(values, reverse=True)


def test_prompts_are_padded_on_the_left():
    ids, mask = left_padded([[5, 6, 7], [8]], pad=0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
