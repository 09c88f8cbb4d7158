"""Copies on a device, the owner on the test's own loop: what depends on when things happen."""

import asyncio
import os
import sys
import threading

import pytest

from foreserve.core import WeightsRef
from foreserve.runtime import device_host, memory_copies
from foreserve.runtime.memory_messages import AdoptCopy, Given, Place, Refused, Release, Waits
from foreserve.runtime.memory_sources import memory, seal
from tests.runtime.test_memory_owner import file, image, serving, until  # noqa: F401

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are handed out on Linux")

SIZE = 100_000


async def holding(client, path, number=1):
    client.acquire(number, path)
    assert isinstance(await client.hear(), Given)


async def copies(client):
    return [entry for entry in (await client.told()).entries if entry.device is not None]


async def test_who_asks_for_a_copy_that_is_going_waits_and_gets_another(tmp_path, file, monkeypatch):  # noqa: F811
    going, free = threading.Event(), device_host.HostAllocation.free

    def slowly(allocation):
        assert going.wait(10)
        free(allocation)

    monkeypatch.setattr(device_host.HostAllocation, "free", slowly)
    async with serving(tmp_path, device_idle_s=0.0) as client:
        await holding(client, file)
        client.say(Place(2, 1, "host-copy"))
        first = await client.hear()
        assert (first.number, first.size, first.copied) == (2, SIZE, True)
        client.say(Release(2))

        async def evicting():
            return [entry.state for entry in await copies(client)] == ["evicting"]

        await until(evicting)
        client.say(Place(3, 1, "host-copy"))
        assert [(entry.state, entry.references) for entry in await copies(client)] == [("evicting", 1)]
        going.set()
        again = await client.hear()
        assert (again.number, again.copied) == (3, True)
        told = await client.told()
        assert (told.uploads, told.device_evictions, told.loads) == (2, 1, 1)


async def test_a_copy_that_nobody_waits_for_is_stopped_between_two_chunks(tmp_path, file, monkeypatch):  # noqa: F811
    chunks, go, write = [], threading.Event(), device_host.HostAllocation.write

    def counted(allocation, at, *more):
        chunks.append(at)
        assert go.wait(10)
        write(allocation, at, *more)

    monkeypatch.setattr(device_host.HostAllocation, "write", counted)
    async with serving(tmp_path, readers=2) as client:
        await holding(client, file)
        client.say(Place(2, 1, "host-copy"))

        async def writing():
            return len(chunks) == 2

        await until(writing)
        client.say(Release(2))
        client.say(Place(3, 1, "host-copy"))  # it waits for the end of that, and begins anew
        assert [(entry.state, entry.references) for entry in await copies(client)] == [("evicting", 1)]
        go.set()
        assert (await client.hear()).number == 3
        assert len(chunks) == 2 + 10
        (copy,) = await copies(client)
        assert (copy.state, copy.bytes) == ("ready", SIZE)


async def test_memory_that_others_have_taken_is_waited_for_and_what_is_idle_goes_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_copies, "AGAIN_S", 0.02)
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    for fill, path in enumerate((a, b, c)):
        path.write_bytes(image(fill, 600_000))
    async with serving(tmp_path) as client:
        for number, path in enumerate((a, b, c)):
            await holding(client, path, number)
        client.say(Place(10, 0, "host-copy:1"))  # 1 MiB in all, which the table does not know
        assert (await client.hear()).copied
        client.say(Release(10))
        client.say(Place(11, 1, "host-copy:1"))
        assert (await client.hear()).copied  # the idle one has gone for it
        assert [(entry.references, entry.state) for entry in await copies(client)] == [(1, "ready")]
        monkeypatch.setattr(memory_copies, "TRIES", 3)
        client.say(Place(12, 2, "host-copy:1"))
        refused = await client.hear()
        assert isinstance(refused, Refused)
        assert "cannot be copied to host-copy:1: 600000 of its 1048576 bytes are in use" in refused.reason
        client.say(Release(11))
        client.say(Place(12, 2, "host-copy:1"))  # the next who asks has it tried again
        assert (await client.hear()).copied


async def test_a_failure_is_told_to_all_who_wait(tmp_path, file, monkeypatch):  # noqa: F811
    gate = threading.Event()

    def fails(*_):
        gate.wait(10)
        raise RuntimeError("the device fell off")

    monkeypatch.setattr(device_host.HostAllocation, "write", fails)
    async with serving(tmp_path) as client:
        await holding(client, file)
        for number in (2, 3):
            client.say(Place(number, 1, "host-copy"))
        assert [entry.references for entry in await copies(client)] == [2]
        gate.set()
        said = [await client.hear(), await client.hear()]
        assert [one.number for one in said] == [2, 3]
        assert all("cannot be copied to host-copy: RuntimeError: the device fell off" in one.reason for one in said)
        assert await copies(client) == []


async def test_a_file_that_changes_while_it_is_copied_is_refused(tmp_path, file, monkeypatch):  # noqa: F811
    write = device_host.HostAllocation.write

    def changed(allocation, *more):
        write(allocation, *more)
        os.utime(file, ns=(1, 1))

    monkeypatch.setattr(device_host.HostAllocation, "write", changed)
    async with serving(tmp_path) as client:
        await holding(client, file)
        client.say(Place(2, 1, "host-copy"))
        assert "it has changed while it was copied" in (await client.hear()).reason


async def test_a_copy_is_made_of_what_is_held_and_of_nothing_else(tmp_path, file):  # noqa: F811
    async with serving(tmp_path) as client:
        client.say(Place(2, 1, "host-copy"))
        assert (await client.hear()).reason.startswith("a copy is made of what is held")
        await holding(client, file)
        client.say(Place(2, 1, "toaster"))
        assert "'toaster' is no device" in (await client.hear()).reason
        client.say(Place(2, 1, "host-copy"))
        assert isinstance(await client.hear(), Given)
        client.say(Place(3, 2, "host-copy"))
        assert (await client.hear()).reason.startswith("a copy is made of what is held")  # and of no copy


async def test_who_finds_no_room_is_told_why(tmp_path, file):  # noqa: F811
    other = tmp_path / "other"
    other.write_bytes(image(9))
    async with serving(tmp_path, device_capacity=150_000) as client:
        await holding(client, file, 1)
        await holding(client, other, 2)
        client.say(Place(3, 1, "host-copy"))
        assert isinstance(await client.hear(), Given)
        client.say(Place(4, 2, "host-copy"))
        waits = await client.hear()
        assert isinstance(waits, Waits)
        assert waits.reason.startswith(f"{other} waits until there is room for its ")
        assert waits.reason.endswith(" bytes on host-copy (device_gb)")
        client.say(Release(3))
        assert (await client.hear()).number == 4


async def test_only_sealed_copies_are_taken_over_and_only_of_what_is_held(tmp_path, file):  # noqa: F811
    async with serving(tmp_path) as client:
        await holding(client, file)
        for number, (of, sealed) in enumerate(((1, False), (9, True), (1, True))):
            fd = memory()
            os.write(fd, image()[-SIZE:])
            given = seal(fd) if sealed else os.dup(fd)
            client.say(AdoptCopy(10 + number, of, "host-copy", SIZE, 2.5), given)
            os.close(fd)
            os.close(given)
        assert (await client.hear()).number == 12
        assert [(entry.references, entry.restore_s, entry.bytes) for entry in await copies(client)] == [(1, 2.5, SIZE)]
        client.say(Release(12))
        client.say(Place(13, 1, "host-copy"))
        assert not (await client.hear()).copied
        assert (await client.told()).uploads == 0


async def test_what_is_let_go_of_while_it_is_taken_over_is_not_held(tmp_path, file, monkeypatch):  # noqa: F811
    go, adopt = threading.Event(), device_host.HostCopy.adopt
    monkeypatch.setattr(device_host.HostCopy, "adopt", lambda *all_: go.wait(10) and adopt(*all_))
    async with serving(tmp_path) as client:
        await holding(client, file)
        fd = memory()
        os.write(fd, image()[-SIZE:])
        given = seal(fd)
        client.say(AdoptCopy(2, 1, "host-copy", SIZE, 2.5), given)
        client.say(Release(2))
        assert await copies(client) == []
        go.set()
        client.say(Place(3, 1, "host-copy"))
        assert (await client.hear()).copied
        assert [entry.references for entry in await copies(client)] == [1]
        os.close(fd)
        os.close(given)


def sealed(content):
    fd = memory()
    os.write(fd, content)
    given = seal(fd)
    os.close(fd)
    return given


async def test_a_copy_of_what_a_file_was_is_not_taken_over(tmp_path, file, caplog):  # noqa: F811
    async with serving(tmp_path) as client:
        await holding(client, file)
        file.write_bytes(image(7))  # in place
        os.utime(file, ns=(1, 1))
        given = sealed(image()[-SIZE:])
        client.say(AdoptCopy(2, 1, "host-copy", SIZE, 2.5), given)
        os.close(given)

        async def told():
            return "was changed after it was loaded" in caplog.text

        await until(told)
        assert await copies(client) == []


async def test_a_copy_of_another_size_is_not_taken_over(tmp_path, file, caplog):  # noqa: F811
    async with serving(tmp_path) as client:
        await holding(client, file)
        given = sealed(b"x" * (SIZE - 1))
        client.say(AdoptCopy(2, 1, "host-copy", SIZE - 1, 2.5), given)
        os.close(given)

        async def told():
            return f"it has {SIZE - 1} bytes, and a copy of what is held has {SIZE}" in caplog.text

        await until(told)
        assert await copies(client) == []


@pytest.mark.parametrize("how", ["place", "adopt", "release"])
async def test_a_copy_of_what_is_still_loaded_waits_for_it(tmp_path, file, monkeypatch, how):  # noqa: F811
    from foreserve.runtime import memory_loader

    go, read = threading.Event(), memory_loader._read
    monkeypatch.setattr(memory_loader, "_read", lambda *all_: go.wait(10) and read(*all_))
    async with serving(tmp_path) as client:
        client.acquire(1, file)
        given = sealed(image()[-SIZE:])
        if how == "adopt":
            client.say(AdoptCopy(2, 1, "host-copy", SIZE, 2.5), given)
        else:
            client.say(Place(2, 1, "host-copy"))
        os.close(given)
        if how == "release":
            client.say(Release(2))
        assert [entry.state for entry in (await client.told()).entries] == ["loading"]
        go.set()
        assert isinstance(first := await client.hear(), Given)
        assert first.number == 1
        if how == "release":
            assert await copies(client) == []
        else:
            assert (second := await client.hear()).number == 2
            assert second.copied == (how == "place")


async def test_who_waits_for_what_cannot_be_loaded_is_refused(tmp_path, file, monkeypatch):  # noqa: F811
    from foreserve.runtime import memory_loader

    go = threading.Event()

    def fails(*_):
        go.wait(10)
        raise OSError("the disk fell off")

    monkeypatch.setattr(memory_loader, "_read", fails)
    async with serving(tmp_path) as client:
        client.acquire(1, file)
        client.say(Place(2, 1, "host-copy"))
        await client.told()
        go.set()
        assert "the disk fell off" in (await client.hear()).reason
        assert (refused := await client.hear()).number == 2
        assert refused.reason.startswith("a copy is made of what is held")


def descriptors_of(path):
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum(os.path.exists(link) and os.path.realpath(link) == str(path) for link in links)


async def test_no_descriptor_of_a_source_is_left_behind(tmp_path, file, monkeypatch):  # noqa: F811
    chunks, go, write = [], threading.Event(), device_host.HostAllocation.write

    def counted(allocation, at, *more):
        chunks.append(at)
        assert go.wait(10)
        write(allocation, at, *more)

    monkeypatch.setattr(device_host.HostAllocation, "write", counted)
    async with serving(tmp_path) as client:
        await holding(client, file)
        before = descriptors_of(file)
        client.say(Place(2, 1, "host-copy"))

        async def writing():
            return bool(chunks)

        await until(writing)
        for number in (2, 3, 4):  # each takes the place of one before, while the stopped load still reads
            client.say(Release(number))
            client.say(Place(number + 1, 1, "host-copy"))
        await client.told()
        client.say(Release(5))
        go.set()

        async def none():
            return await copies(client) == []

        await until(none)
        assert descriptors_of(file) == before


async def test_devices_are_bounded_and_known(tmp_path, file, monkeypatch):  # noqa: F811
    from foreserve.runtime import memory_places

    monkeypatch.setattr(memory_places, "MOST_DEVICES", 2)
    async with serving(tmp_path) as client:
        await holding(client, file)
        before = descriptors_of(file)
        for word in ("toaster", "cuda:0", "cuda:ffff", "cpu", ""):
            client.say(Place(2, 1, word))
            assert f"{word!r} is no device" in (await client.hear()).reason
        for number, word in enumerate(("host-copy:1", "host-copy:2")):
            client.say(Place(10 + number, 1, word))
            assert isinstance(await client.hear(), Given)
        client.say(Place(2, 1, "host-copy:3"))
        assert "at most 2 devices" in (await client.hear()).reason
        assert descriptors_of(file) <= before + 2


async def test_copies_have_a_bound_of_their_own(tmp_path, file, monkeypatch):  # noqa: F811
    from foreserve.runtime import memory_line

    monkeypatch.setattr(memory_line, "MOST_LEASES", 2)
    monkeypatch.setattr(memory_line, "MOST_COPIES", 2)
    async with serving(tmp_path) as client:
        for number in (1, 2):
            await holding(client, file, number)
        for number in (3, 4):
            client.say(Place(number, 1, "host-copy"))
            assert isinstance(await client.hear(), Given)
        client.say(Place(5, 1, "host-copy"))
        assert (await client.hear()).reason == (
            "one process may have 2 copies of weights on devices, and this one has them"
        )
        client.acquire(6, file)
        assert (await client.hear()).reason == "one process may have 2 weights, and this one has them"
        client.say(Release(3))
        client.say(Place(5, 1, "host-copy"))
        assert isinstance(await client.hear(), Given)


async def test_the_same_by_another_path_is_told_of_by_both(tmp_path, file):  # noqa: F811
    from foreserve.runtime.memory_messages import mark

    copy = tmp_path / "copy"
    copy.write_bytes(image())
    async with serving(tmp_path, learn_after_s=0.0) as client:

        async def learned():
            return all(entry.sha256 for entry in (await client.told()).entries)

        for number, path in enumerate((file, copy)):
            await holding(client, path, number)
            await until(learned)
        client.say(Release(1))
        await holding(client, copy, 2)
        client.say(Place(3, 2, "host-copy"))
        await client.hear()
        both = {mark(WeightsRef(name="x", source=str(path))) for path in (file, copy)}
        for device in (None, "host-copy"):
            entries = [entry for entry in (await client.told()).entries if entry.device == device and entry.references]
            assert both in [set(entry.marks) for entry in entries]
        await asyncio.sleep(0)
