from foreserve.core import Work
from foreserve.elastic.turns import EVERY, Turns


def work(name: str, arrival: float, deadline: float | None = None) -> Work:
    return Work(id=name, payload=None, cost={"slots": 1.0}, arrival=arrival, deadline=deadline)


def due(work: Work) -> float:
    return work.deadline if work.deadline is not None else work.arrival + 1.0


def test_one_pass_of_every_eight_is_of_those_that_are_overdue() -> None:
    turns = Turns(due)
    old, older, new, urgent = work("old", 1.0), work("older", 0.0), work("new", 9.5), work("urgent", 0.0, 5.0)
    for _ in range(EVERY - 1):
        assert turns.theirs([old, older], 10.0) == []
        turns.passed([urgent], 10.0)
    assert turns.theirs([old, new, urgent, older], 10.0) == [older, old]
    assert turns.theirs([new, urgent], 10.0) == []
    turns.passed([older, urgent], 10.0)
    assert turns.theirs([old], 10.0) == []


def test_whoever_has_patience_left_or_a_deadline_is_not_overdue() -> None:
    turns = Turns(due)
    assert turns.overdue(work("a", 0.0), 1.5)
    assert not turns.overdue(work("a", 0.0), 1.0)
    assert not turns.overdue(work("b", 0.0, 0.5), 1.5)
