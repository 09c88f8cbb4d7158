import pytest

from foreserve.core import Outcome, OutcomeKind
from foreserve.dispatch.ledger import Ledger
from foreserve.errors import LedgerError


def outcome(request_id: str, kind: OutcomeKind = OutcomeKind.DONE) -> Outcome:
    return Outcome(id=request_id, service="s", kind=kind, arrival=0, ended=1)


def test_counts_roots_and_children_apart():
    ledger = Ledger()
    ledger.enter("root")
    ledger.enter("child", child=True)
    ledger.end(outcome("child", OutcomeKind.FAILED))
    ledger.check()
    assert dict(ledger.open) == {"root": False}
    assert ledger.ended(OutcomeKind.FAILED, child=True) == 1
    assert ledger.ended(OutcomeKind.FAILED) == 0
    ledger.end(outcome("root"))
    ledger.check(idle=True)


def test_a_second_end_and_a_second_entry_are_errors():
    ledger = Ledger()
    ledger.enter("a")
    with pytest.raises(LedgerError, match="entered twice"):
        ledger.enter("a")
    ledger.end(outcome("a"))
    with pytest.raises(LedgerError, match="without being open"):
        ledger.end(outcome("a"))


def test_what_never_ended_is_named_when_idle():
    ledger = Ledger()
    ledger.enter("lost")
    ledger.check()
    with pytest.raises(LedgerError, match="lost"):
        ledger.check(idle=True)
