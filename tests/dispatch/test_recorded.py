from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from foreserve.core import Ramp
from foreserve.dispatch.decisions import FrozenRoom
from foreserve.dispatch.journal import Journal
from foreserve.dispatch.recorded import Tape
from foreserve.ports import Room


class Map:
    """A look-ahead that counts how often it is written down."""

    def __init__(self) -> None:
        self.step = 0
        self.frozen_times = 0

    def takes(self, ramps: Sequence[Ramp]) -> bool:
        return True

    def frozen(self) -> Any:
        self.frozen_times += 1
        return {"step": self.step}


def test_a_room_that_is_given_again_is_neither_frozen_nor_written_again(tmp_path: Path):
    journal = Journal(tmp_path / "d.jsonl", "the test's file", threaded=False)
    tape = Tape("s", journal)
    maps = [Map() for _ in range(3)]
    rooms = [
        Room(replica=f"r{n}", free={"slots": 1.0}, capacity={"slots": 4.0}, running=3, ahead=ahead)
        for n, ahead in enumerate(maps)
    ]
    assert [type(told) for told in tape.rooms(rooms)] == [FrozenRoom] * 3
    for _ in range(5):
        assert tape.rooms(rooms) == ["r0", "r1", "r2"]
    assert [ahead.frozen_times for ahead in maps] == [1, 1, 1]
    alike = msgspec.structs.replace(rooms[0])
    assert tape.rooms([alike, *rooms[1:]]) == ["r0", "r1", "r2"]
    assert [ahead.frozen_times for ahead in maps] == [2, 1, 1]
    maps[1].step = 7
    told = tape.rooms([alike, msgspec.structs.replace(rooms[1]), rooms[2]])
    assert (told[0], told[2]) == ("r0", "r2")
    assert isinstance(told[1], FrozenRoom)
    assert told[1].ahead == {"step": 7}
    journal.close()
