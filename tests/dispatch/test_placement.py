from foreserve.dispatch.placement import LeastRequests, RoundRobin
from foreserve.ports import Room


def room(name: str, running: int, slots: int = 4) -> Room:
    return Room(replica=name, free={"slots": slots - running}, capacity={"slots": slots}, running=running)


def test_least_requests_goes_by_share_then_by_name():
    rooms = [room("c", 2), room("b", 1), room("a", 1), room("d", 1, slots=2)]
    assert LeastRequests().place([], rooms, 0) == "a"
    assert LeastRequests().place([], [room("x", 3, slots=16), room("y", 1, slots=4)], 0) == "x"


def test_round_robin_takes_turns_and_survives_replicas_that_come_and_go():
    policy = RoundRobin()
    rooms = [room(name, 0) for name in "bca"]
    assert [policy.place([], rooms, 0) for _ in range(4)] == ["a", "b", "c", "a"]
    assert policy.place([], [room("c", 0)], 0) == "c"
    assert policy.place([], rooms, 0) == "a"
