from __future__ import annotations

from typing import Any

import pytest

from foreserve.core import Forecast, Length, Prefix, Ramp, Work
from foreserve.dispatch.placement_anticipated import SILENT_S, Anticipated, AnticipatedEven, PrefixAffinity
from foreserve.fleet.ahead import Ahead
from foreserve.ports import Placement, Room, Shortlisted, Unread, ranked
from foreserve.simulation.clock import run
from tests.dispatch.harness import House

KV = 10_000.0


def room(name: str, held: int = 0, **words: Any) -> Room:
    ahead = Ahead({"slots": 64.0}, {"slots": 64.0, "kv_tokens": KV})
    if held:
        ahead.map("kv_tokens").add("all", Ramp(resource="kv_tokens", base=held, steps=1000, most=held + 1000))
    words = {"running": 1 if held else 0, "token_s": 0.001, "step_s": 0.03, "heard": 0.0, **words}
    return Room(
        replica=name, free={"slots": 9.0}, capacity={"slots": 64.0}, holds={"kv_tokens": KV}, ahead=ahead, **words
    )


def work(prompt: int = 100, output: int = 100, blocks: tuple[int, ...] = (), name: str = "w") -> Work:
    length = Length(mean=output, p50=output, p80=output, p95=output, source="fast")
    return Work(
        id=name,
        payload=None,
        cost={"slots": 1.0},
        arrival=0.0,
        forecast=Forecast(input_tokens=prompt, output=length, most_tokens=1000, seconds=1.0),
        ramp=Ramp(resource="kv_tokens", base=prompt, steps=output, most=prompt + 1000),
        prefix=Prefix(block_tokens=100, blocks=blocks) if blocks else None,
    )


def unread(tokens: int, since: float = 0.0) -> Unread:
    return Unread(tokens=tokens, first=tokens, since=since, count=1)


def placed(*rooms: Room, now: float = 0.0, **words: Any) -> str:
    return Anticipated().place([work(**words)], rooms, now)


def test_the_emptier_cache_is_preferred_the_more_so_the_nearer_it_is_to_full():
    assert placed(room("full", 9000), room("half", 5000)) == "half"
    # The same difference far from full is worth less than a fifth of a second of reading.
    reading = {"unread": unread(200)}
    assert placed(room("busy", 1500, **reading), room("fuller", 2000)) == "fuller"
    assert placed(room("busy", 9000, **reading), room("fuller", 9500)) == "busy"


def test_what_is_foreseen_counts_not_what_is_held_now():
    leaving = room("leaving")
    leaving.ahead.map("kv_tokens").add("all", Ramp(resource="kv_tokens", base=7000, steps=3, most=7003))  # type: ignore[union-attr]
    staying = room("staying", 6950)
    assert placed(leaving, staying) == "leaving"


def test_prompts_that_are_not_read_yet_are_waited_for_and_what_has_been_read_meanwhile_is_not():
    assert placed(room("reads", unread=unread(500)), room("free", 1000)) == "free"
    assert placed(room("a", unread=unread(500)), room("b", unread=unread(400, since=-0.3))) == "b"
    slow = room("slow", unread=unread(300), token_s=0.01)
    assert placed(slow, room("quick", unread=unread(900))) == "quick"


def test_a_straggler_and_one_that_has_gone_silent_are_passed_over():
    assert placed(room("slow", 3000, step_s=0.3), room("b", 4000), room("c", 4000)) == "b"
    assert placed(room("silent", 3000), room("b", 4000, heard=20.0), now=20.0 + SILENT_S) == "b"
    assert placed(room("idle"), room("b", 4000, heard=20.0), now=20.0) == "idle", "who has nothing to do says little"


def test_overflow_is_kept_together_so_that_the_rest_go_on():
    rooms = [room("a", 9600), room("b", 9900), room("c", 9700)]
    placement = Anticipated()
    assert placement.place([work()], rooms, 0.0) == "b", "all would be too full: the fullest has it"
    assert placement.near([work()]) == ["b"], "it is looked at again however many there are"
    assert placement.place([work()], [*rooms, room("d", 9400)], 0.0) == "d", "who has room takes it"
    assert placement.place([work()], [room("d", 9400), room("e", 5000)], 0.0) == "e"
    assert not placement.near([work()]), "nobody overflows any more"


def test_overflow_is_shared_by_all_where_it_is_to_be_even():
    rooms = [room("a", 9600), room("b", 9900), room("c", 9700)]
    placement = AnticipatedEven()
    assert placement.place([work()], rooms, 0.0) == "a"
    assert not placement.near([work()])


def test_overflow_goes_to_nobody_who_is_slow_or_silent_or_where_it_would_wait_too_long():
    slow, silent = room("slow", 9900, step_s=0.3), room("silent", 9950)
    well = [room("a", 9700, heard=20.0), room("b", 9800, heard=20.0)]
    assert placed(slow, silent, *well, now=20.0) == "b"
    # A thousand steps of a tenth of a second until it has room.
    assert placed(room("b", 9900, step_s=0.1), room("a", 9700, step_s=0.1), prompt=200) == "a"


def test_a_request_that_fills_a_cache_by_itself_is_no_overflow():
    assert placed(room("busy", 3000), room("idle", 100), prompt=9900) == "idle"


def test_a_replica_that_may_hang_has_no_room_however_empty():
    assert placed(room("hangs", 100), room("full", 9900, heard=20.0), now=20.0) == "full"


def test_a_known_beginning_is_worth_its_reading():
    placement = Anticipated()
    first = work(1000, blocks=tuple(range(10)), name="first")
    rooms = [room("a"), room("b")]
    assert not placement.near([first])
    assert placement.chosen([first], "b", 0.0) == 0
    again = work(1200, blocks=(*range(10), 77, 78), name="again")
    assert placement.near([again]) == ["b"]
    assert placement.place([again], rooms, 0.0) == "b"
    assert placement.chosen([again], "b", 0.0) == 1000
    assert placement.place([again], [rooms[0], room("b", unread=unread(5000))], 0.0) == "a", "it would wait longer"


def test_where_nothing_is_foreseen_the_freest_slots_win():
    plain = Work(id="w", payload=None, cost={"slots": 1.0}, arrival=0.0)
    rooms = [
        Room(replica=name, free={"slots": 1.0}, capacity={"slots": 8.0}, running=n) for n, name in enumerate("cba", 1)
    ]
    assert Anticipated().place([plain], rooms, 0.0) == "c"
    assert sorted(rooms, key=Anticipated().rank)[0].replica == "c"


def test_the_order_of_the_list_is_by_what_is_held_and_unread():
    rooms = [room("half", 5000), room("reads", 4000, unread=unread(2000)), room("free", 4000)]
    assert [one.replica for one in sorted(rooms, key=Anticipated().rank)] == ["free", "half", "reads"]


def test_affinity_alone_goes_to_the_longest_beginning_unless_it_is_much_busier():
    placement = PrefixAffinity()
    first = work(blocks=(1, 2), name="first")
    placement.chosen([first], "b", 0.0)
    placement.chosen([work(blocks=(1,), name="second")], "c", 0.0)
    rooms = [room("a", running=2), room("b", running=4), room("c", running=3)]
    assert placement.near([first]) == ["b", "c"]
    assert placement.place([first], rooms, 0.0) == "b"
    rooms[1] = room("b", running=6)
    assert placement.place([first], rooms, 0.0) == "c"
    assert placement.place([work(blocks=(9,))], rooms, 0.0) == "a"


@pytest.mark.parametrize("kind", [Anticipated, PrefixAffinity])
def test_a_dispatcher_shows_it_a_short_list_and_tells_it_what_was_chosen(kind: type[Any]):
    assert ranked(kind()) is None
    assert isinstance(kind(), Shortlisted)

    class Watched(kind):  # type: ignore[misc]
        shown: list[list[str]]
        told: list[str]

        def place(self, works: Any, rooms: Any, now: float) -> str:
            self.shown.append([one.replica for one in rooms])
            return str(super().place(works, rooms, now))

        def chosen(self, works: Any, replica: str, now: float) -> int:
            self.told.append(replica)
            return int(super().chosen(works, replica, now))

    async def main() -> None:
        placement: Placement = Watched()
        placement.shown, placement.told = [], []  # type: ignore[attr-defined]
        house = House(placement=placement)
        replicas = [house.replica(f"r{n:02}", 4) for n in range(40)]
        streams = [house.submit(f"q{n}") for n in range(120)]
        for stream in streams:
            await stream.settled()
        assert sum(len(replica.batches) for replica in replicas) == 120
        assert [len(replica.batches) for replica in replicas] == [placement.told.count(r.name) for r in replicas]  # type: ignore[attr-defined]
        assert max(map(len, placement.shown)) <= kind.shortlist + 2  # type: ignore[attr-defined]
        assert max(replica.most_held for replica in replicas) <= 4

    run(main())
