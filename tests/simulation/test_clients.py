from __future__ import annotations

from foreserve.simulation.clients import first_of
from tests.simulation.trials import trial


def test_a_share_of_the_clients_leaves():
    found = trial("client_cancel:share=0.5;patience_s=0.3", per_s=3.0)
    assert not found.findings
    left = [one.to for one in found.happened]
    assert 30 < len(left) < 100
    assert found.outcomes["cancelled"] == len(left) == len(set(left))


def test_all_leave_after_the_first_token_at_once():
    found = trial("client_cancel:share=1;patience_s=0;after_first=1", per_s=1.0)
    assert not found.findings
    # Whose only token is the first one has been served by then.
    assert found.outcomes["cancelled"] > 180


def test_who_is_refused_comes_again_a_bounded_number_of_times_each_as_a_request_of_its_own():
    plain, found = (trial(words, 1, per_s=20.0) for words in ("", "client_retry:share=1;most=2;backoff_s=0.5"))
    assert not found.findings
    assert sum(plain.outcomes.values()) == 200
    assert sum(found.outcomes.values()) == 200 + len(found.happened)
    assert found.outcomes["done"] > plain.outcomes["done"]
    again = [one.what.rpartition(" ")[2] for one in found.happened]
    assert {name.partition(".")[2] for name in again} == {"1", "2"}
    assert len(set(again)) == len(again)
    assert all(first_of(name) == first_of(one.to) for name, one in zip(again, found.happened, strict=True))


def test_nobody_comes_again_before_retry_after():
    found = trial("client_retry:share=1;backoff_s=0", 1, per_s=20.0)
    waits = [float(one.what.split(" in ")[1].split(" s")[0]) for one in found.happened]
    assert min(waits) >= 1.0
