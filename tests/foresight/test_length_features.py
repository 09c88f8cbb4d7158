import sys

import numpy as np
import pytest

from foreserve.foresight import length_features
from foreserve.foresight.length_features import MEANING, app_of, featurise, key
from foreserve.foresight.length_history import History
from tests.foresight.samples import asked


class Letters:
    """An encoder of no sense that tells texts apart."""

    def instructions(self, texts):
        return np.stack([np.full(MEANING, len(text) % 7, np.float16) for text in texts])

    inputs = instructions


@pytest.mark.parametrize("encoder", [None, Letters()])
def test_features_come_back_from_bytes_and_hold_no_text(encoder):
    batch = [asked("a secret word " * 200, "Be brief.", "acme", 400), asked("", "", "b", 0, most=2**40)]
    for one in featurise(batch, encoder, History()):
        data = one.to_bytes()
        again = type(one).from_bytes(data)
        assert again.to_bytes() == data
        assert (again.input_tokens, again.app, again.tenant, again.most) == (
            one.input_tokens, one.app, one.tenant, one.most
        )  # fmt: skip
        assert np.array_equal(again.words, one.words)
        assert (again.meaning is None) == (encoder is None)
        assert len(data) < (2700 if encoder else 1200)
        assert b"secret" not in data


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[:-1], lambda d: d + b"x", lambda d: b"\xff" + d[1:]])
def test_damaged_bytes_are_refused(damage):
    one = featurise([asked("hello world")])[0]
    with pytest.raises(ValueError, match="features"):
        type(one).from_bytes(damage(one.to_bytes()))


def test_a_request_alone_is_as_in_a_batch():
    batch = [asked(f"text number {n}", "Sum up." if n % 2 else "", f"t{n}") for n in range(20)]
    together = featurise(batch)
    assert [one.to_bytes() for one in together] == [featurise([one])[0].to_bytes() for one in batch]
    assert featurise([]) == []


def test_keys():
    assert key("acme") == key("acme") != key("Acme")
    assert key("x" * 1000) != key("x" * 1001)
    assert app_of(asked(instruction="")) == 0 != app_of(asked(instruction="Sum up."))


def test_the_past_is_that_of_when_it_came():
    from foreserve.foresight.length import Ended

    history, one = History(), asked(instruction="Sum up.", tenant="acme")
    before = featurise([one], None, history)[0]
    for _ in range(30):
        history.learn(one, Ended(tokens=100))
    after = featurise([one], None, history)[0]
    assert not before.past.any()
    assert after.past[0] == pytest.approx(np.log(100) * 30 / 33, rel=1e-2)


def test_of_instructions_no_text_is_kept_and_only_the_latest_are():
    text = "".join(["An instruction to be forgotten. "] * 1000)
    held = sys.getrefcount(text)
    app = featurise([asked("x", text)])[0].app
    assert sys.getrefcount(text) == held
    assert app in length_features._instructions
    for number in range(length_features.MOST_INSTRUCTIONS):
        featurise([asked("x", f"Another, {number}.")])
    assert len(length_features._instructions) == length_features.MOST_INSTRUCTIONS
    assert app not in length_features._instructions
