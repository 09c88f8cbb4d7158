"""The conservation rule: every request that enters ends in exactly one outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from foreserve.core import Outcome, OutcomeKind
from foreserve.errors import LedgerError


class Ledger:
    """Counts what entered and how it ended, roots and children (those with a parent) apart.

    Memory is bounded by what is open: an ended request leaves nothing but its count.
    """

    def __init__(self) -> None:
        self._open: dict[str, bool] = {}
        self.entered: Counter[bool] = Counter()
        self._ended: dict[bool, Counter[OutcomeKind]] = {False: Counter(), True: Counter()}

    def enter(self, request_id: str, *, child: bool = False) -> None:
        """Raises LedgerError when a request of this id is open."""
        if request_id in self._open:
            raise LedgerError(f"request {request_id} entered twice")
        self._open[request_id] = child
        self.entered[child] += 1

    def end(self, outcome: Outcome) -> None:
        """Raises LedgerError when the request is not open: it never entered, or it has ended already."""
        try:
            child = self._open.pop(outcome.id)
        except KeyError:
            raise LedgerError(f"request {outcome.id} ended ({outcome.kind}) without being open") from None
        self._ended[child][outcome.kind] += 1

    @property
    def open(self) -> Mapping[str, bool]:
        """The requests that have not ended yet, in order of entry, and whether each is a child."""
        return self._open

    def ended(self, kind: OutcomeKind, *, child: bool = False) -> int:
        """How many requests ended as `kind`."""
        return self._ended[child][kind]

    def check(self, *, idle: bool = False) -> None:
        """Raises LedgerError unless entered = ended + open, and, when `idle`, unless nothing is open."""
        for child in (False, True):
            still_open = sum(1 for c in self._open.values() if c is child)
            total = self._ended[child].total() + still_open
            if self.entered[child] != total:
                raise LedgerError(f"{'children' if child else 'roots'}: {self.entered[child]} entered, {total} known")
        if idle and self._open:
            raise LedgerError(f"{len(self._open)} requests never ended, the oldest is {next(iter(self._open))}")
