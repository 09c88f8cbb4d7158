from collections import Counter

import pytest
from benchmarks import mixes, pairs
from benchmarks.mixes import Ask, Mix


def ask(number, tokens=5):
    return Ask(
        messages=[{"role": "user", "content": str(number)}], response="", key=str(number), prompt_tokens=3,
        output_tokens=tokens, tenant="ada",
    )  # fmt: skip


MIX = Mix("test", [ask(n) for n in range(100)], [ask(n) for n in range(100, 400)], shuffled=True)


def test_a_seed_draws_the_same_requests():
    assert MIX.draw(50, 1) == MIX.draw(50, 1) != MIX.draw(50, 2)
    assert len({drawn.key for drawn in MIX.draw(300, 1)}) == 300, "without repetition"


def test_what_is_held_out_is_not_learned_from():
    assert all(int(drawn.key) >= 100 for drawn in MIX.draw(300, 3))
    assert all(int(drawn.key) < 100 for drawn in MIX.draw_train(100, 3))
    greeting = mixes._mix("test", [ask(1), ask(2)], [ask(2)], shuffled=True)
    assert [kept.key for kept in greeting.train] == ["1"]


def test_one_tenant_sends_twice_as_much():
    counts = Counter(drawn.tenant for drawn in MIX.draw(300, 0))
    assert set(counts) == set(mixes.TENANTS)
    assert max(counts, key=counts.__getitem__) == "flood"


def test_turns_come_after_those_before_them():
    chats = [
        [{"role": "user" if n % 2 == 0 else "assistant", "content": f"{chat}.{n}"} for n in range(2 * chat)]
        for chat in range(1, 40)
    ]
    turns = mixes._mixed(chats, seed=1)
    assert len(turns) == sum(range(1, 40))
    seen: dict[str, int] = {}
    for turn in turns:
        name = turn[0]["content"]
        assert len(turn) == seen.get(name, 0) + 2
        assert turn[-1]["role"] == "assistant"
        seen[name] = len(turn)
    stretch = Mix("test", [], [ask(n) for n in range(100)], shuffled=False).draw(20, 1)
    numbers = [int(drawn.key) for drawn in stretch]
    assert numbers == list(range(numbers[0], numbers[0] + 20))


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("name", mixes.MIXES)
def test_real_mixes_keep_their_caps(name):
    if not pairs.available(name):
        pytest.skip("the data is not on this machine")
    mix = mixes.MIXES[name]()
    every = [*mix.train, *mix.held_out]
    assert not {a.key for a in mix.train} & {a.key for a in mix.held_out}
    assert max(a.output_tokens for a in every) <= mixes.ANSWER_CAP
    assert max(a.prompt_tokens for a in every) <= mixes.PROMPT_CAP
    assert mix.truths() == {a.key: a.output_tokens for a in every}
