from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from foreserve import registry
from foreserve.chosen import make_admission, make_policy
from foreserve.dispatch.batching import FirstCome, FixedBatches
from foreserve.dispatch.ordering import ResponseRatio
from foreserve.errors import ConfigError
from foreserve.settings import QueueSettings


def words(name: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make_policy("chat", name, options)
    return str(caught.value).removeprefix("service 'chat': ")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fcfs", {"aging": 1}, "policy_options.aging: unknown option for policy 'fcfs'; it takes none"),
        (
            "fixed",
            {"sise": 1},
            "policy_options.sise: unknown option for policy 'fixed'; did you mean 'size'? valid: size, max_wait_s",
        ),
        ("hrrn", {"aging": "much"}, "policy_options.aging is 'much': expected float, got str"),
        ("hrrn", {"aging": None}, "policy_options.aging is empty: expected float, got nothing"),
        ("hrrn", {"oldest_every": 2.5}, "policy_options.oldest_every is 2.5: expected int, got float"),
        ("hrrn", {"oldest_every": True}, "policy_options.oldest_every is True: expected int, got bool"),
        ("hrrn", {"engine_priority": 1}, "policy_options.engine_priority is 1: expected bool, got int"),
        ("hrrn", {"tenant_weights": [1]}, "policy_options.tenant_weights is [1]: expected keys and values, got array"),
        ("hrrn", {"tenant_weights": {"ann": "2"}}, "policy_options.tenant_weights is {'ann': '2'}: expected float"),
        ("magnus", {"order": "hrn"}, "policy_options.order is 'hrn'; did you mean 'hrrn'? valid: hrrn, fcfs"),
        ("hrrn", {"aging": -1}, "policy hrrn: `aging` is -1"),
    ],
)
def test_an_option_that_does_not_fit_is_named(name: str, options: Any, said: str) -> None:
    assert words(name, **options).startswith(said)


def test_options_that_fit_are_taken() -> None:
    assert isinstance(make_policy("chat", "fcfs", {}), FirstCome)
    assert isinstance(make_policy("chat", "fixed", {"size": None, "max_wait_s": 1}), FixedBatches)
    made = make_policy("chat", "hrrn", {"aging": 2, "tenant_weights": {"ann": 2, "bob": 0.5}})
    assert isinstance(made, ResponseRatio)


class Own(FirstCome):
    """A policy as a user's own package might bring it."""

    def __init__(self, weigh: Callable[[int], int], plain=1, **more: int) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.took = (weigh, plain, more)


def test_a_policy_of_a_users_own_is_given_what_plain_values_cannot_be_told_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda *words, **more: Own)
    made = make_policy("chat", "own", {"weigh": abs, "plain": "x", "other": 3})
    assert isinstance(made, Own)
    assert made.took == (abs, "x", {"other": 3})
    assert words("own", plain=1) == "policy_options: policy 'own' needs 'weigh'; valid: weigh, plain"


def test_auto_is_among_the_valid_names() -> None:
    assert "valid: auto, deferred, earliest_root, elastic, fcfs, " in words("lifo")
    with pytest.raises(ConfigError, match="valid: auto, always, bounded"):
        make_admission("chat", QueueSettings(admission="nobody"), FirstCome())
