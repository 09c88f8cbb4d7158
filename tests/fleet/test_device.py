"""The acceptance tests of shared weights on a device: the memory owner and its clients, in real processes."""

import asyncio
import hashlib
import os
import signal
import sys

import pytest

from tests.devices import DEVICES, use
from tests.fleet.holding import MIB, Holder, holders, until, weights_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are handed out on Linux")


@pytest.fixture(params=DEVICES)
def device(request, tmp_path_factory, monkeypatch):
    return use(request.param, tmp_path_factory.getbasetemp(), monkeypatch)


def on(device, path, name="w"):
    return f"{name}=file:{path}!{device}"


def digest(path):
    """Of what is copied: all but the header, which has 128 bytes."""
    return hashlib.sha256(path.read_bytes()[128:]).hexdigest()


async def copies(memory, n):
    """What is told once the copies have `n` references in all."""

    async def settled():
        stats = await memory.stats()
        held = [] if stats is None else [entry for entry in stats.entries if entry.device is not None]
        return stats is not None and sum(entry.references for entry in held) == n and (stats, held)

    return await until(settled)


async def test_eight_at_once_copy_the_bytes_once(made, tmp_path, device):
    path, memory = weights_file(tmp_path / "w", mib=4), made()
    async with holders(memory, 8, on(device, path)) as started:
        looks = await asyncio.gather(*(each.say("look") for each in started))
        assert looks == [{"w": digest(path)}] * 8
        stats, (copy,) = await copies(memory, 8)
        assert (stats.loads, stats.bytes_read) == (1, 4 * MIB)
        assert (stats.uploads, stats.device_bytes, copy.bytes) == (1, copy.bytes, copy.bytes)
        assert 4 * MIB - 128 <= copy.bytes <= 4 * MIB  # pages of the device may be larger than what is in them
        assert (copy.state, copy.source, copy.bytes_read) == ("ready", str(path), 4 * MIB - 128)
        assert copy.restore_s > 0
    await copies(memory, 0)


async def test_a_killed_holder_returns_its_reference_and_the_copy_stays_for_the_next(made, tmp_path, device):
    path, memory = weights_file(tmp_path / "w"), made()
    async with holders(memory, 2, on(device, path)) as (one, other):
        await asyncio.gather(one.say("placed"), other.say("placed"))
        await copies(memory, 2)
        await one.kill()
        await copies(memory, 1)
        assert await other.say("look") == {"w": digest(path)}
    _, (copy,) = await copies(memory, 0)
    assert copy.state == "ready"
    async with holders(memory, 1, on(device, path)) as (late,):
        assert await late.say("look") == {"w": digest(path)}
        stats, _ = await copies(memory, 1)
        assert (stats.loads, stats.uploads) == (1, 1)


async def test_the_copy_goes_first_and_having_it_again_costs_the_upload_alone(made, tmp_path, device):
    path, memory = weights_file(tmp_path / "w"), made(device_s=0.0)
    async with holders(memory, 1, on(device, path)) as (holder,):
        await holder.say("placed")

    async def gone():
        stats = await memory.stats()
        return [(entry.device, entry.state) for entry in stats.entries] == [(None, "ready")]

    await until(gone)
    stats = await memory.stats()
    assert (stats.device_evictions, stats.evictions, stats.device_bytes, stats.bytes) == (1, 0, 0, MIB)
    async with holders(memory, 1, on(device, path)) as (holder,):
        assert await holder.say("look") == {"w": digest(path)}
        stats, _ = await copies(memory, 1)
        assert (stats.loads, stats.uploads, stats.bytes_read) == (1, 2, MIB)


async def test_an_idle_worker_lets_go_and_has_it_again_at_the_same_address(made, tmp_path, device):
    path, memory = weights_file(tmp_path / "w"), made()
    async with holders(memory, 1, on(device, path)) as (holder,):
        at = await holder.say("placed")
        assert await holder.say("rest") == {"w": True}
        assert await holder.say("rest") == {"w": False}  # it does already
        _, (copy,) = await copies(memory, 0)
        assert copy.state == "ready"
        assert await holder.say("wake") == {"w": False}  # it was still there
        assert await holder.say("placed") == at
        assert await holder.say("look") == {"w": digest(path)}
        stats, _ = await copies(memory, 1)
        assert stats.uploads == 1


async def test_a_file_that_was_changed_since_it_was_loaded_is_not_copied_under_its_old_name(made, tmp_path, device):
    path, memory = weights_file(tmp_path / "w"), made(device_s=0.0)
    async with holders(memory, 1, on(device, path)) as (holder,):
        await holder.say("placed")
        await holder.say("rest")

        async def gone():
            stats = await memory.stats()
            return stats.device_evictions == 1

        await until(gone)
        other = weights_file(tmp_path / "other", fill=7).read_bytes()
        with path.open("r+b") as file:  # in place, as cp does
            file.write(other)
        assert "changed after it was loaded" in str(await holder.say("wake"))
    async with holders(memory, 1, on(device, path)) as (late,):
        assert await late.say("look") == {"w": digest(path)}


async def test_who_rests_when_the_copy_goes_gets_another_at_the_same_address(made, tmp_path, device):
    path, memory = weights_file(tmp_path / "w"), made(device_s=0.0)
    async with holders(memory, 1, on(device, path)) as (holder,):
        at = await holder.say("placed")
        await holder.say("rest")

        async def gone():
            return not [entry for entry in (await memory.stats()).entries if entry.device is not None]

        await until(gone)
        assert await holder.say("wake") == {"w": True}
        assert await holder.say("placed") == at
        assert await holder.say("look") == {"w": digest(path)}


async def test_pressure_takes_what_is_idle_and_never_what_is_held(made, tmp_path, device):
    a, b, c = (weights_file(tmp_path / name, mib=4, fill=fill) for fill, name in enumerate("abc"))
    memory = made(device_gb=8 / 1024)
    async with holders(memory, 1, on(device, a)) as (holds,):
        await holds.say("placed")
        for path in (b, c):  # one after the other: each is idle when the next one wants its room
            async with holders(memory, 1, on(device, path)) as (passing,):
                assert await passing.say("look") == {"w": digest(path)}
        stats, held = await copies(memory, 1)
        assert {entry.source for entry in held} == {str(a), str(c)}
        assert stats.device_evictions == 1
        assert stats.device_bytes <= 8 * MIB
        assert stats.evictions == 0  # their copies in the host's memory are there
        assert await holds.say("look") == {"w": digest(a)}
        large = weights_file(tmp_path / "large", mib=16)
        async with holders(memory, 1, on(device, large)) as (refused,):
            assert "together may take 8388608 (device_gb)" in (await refused.say("placed"))["w"]
            assert await refused.say("wait") == {"w": 16 * MIB}  # to be copied for itself alone


async def test_who_finds_no_room_gets_it_when_another_is_idle(made, tmp_path, device):
    a, b = (weights_file(tmp_path / name, mib=4) for name in "ab")
    memory = made(device_gb=6 / 1024)
    async with holders(memory, 1, on(device, a)) as (holds,):
        await holds.say("placed")
        async with holders(memory, 1, on(device, b)) as (waits,):
            waiting = asyncio.create_task(waits.say("look"))
            _, held = await copies(memory, 2)
            assert {entry.source: entry.state for entry in held} == {str(a): "ready", str(b): "waiting"}
            await holds.say("rest")
            assert await waiting == {"w": digest(b)}


async def test_contents_share_a_copy_only_when_they_are_known_to_be_equal(made, tmp_path, device):
    a, b, c = weights_file(tmp_path / "a"), weights_file(tmp_path / "b"), weights_file(tmp_path / "c", fill=2)
    sha256, memory = hashlib.sha256(a.read_bytes()).hexdigest(), made()
    wanted = [f"a=file:{a}#{sha256}!{device}", f"b=file:{b}#{sha256}!{device}", on(device, c, "c")]
    async with holders(memory, 1, *wanted) as (holder,):
        assert await holder.say("look") == {"a": digest(a), "b": digest(a), "c": digest(c)}
        stats, held = await copies(memory, 3)
        assert stats.uploads == 2
        assert sorted(entry.references for entry in held) == [1, 2]


async def test_a_write_ends_who_writes_and_changes_nothing_for_the_others(made, tmp_path, device):
    path, memory = weights_file(tmp_path / "w"), made()
    async with holders(memory, 2, on(device, path)) as (writes, reads):
        await asyncio.gather(writes.say("placed"), reads.say("placed"))
        code = await writes.dies_of("write")
        assert code == (-signal.SIGSEGV if device == "host-copy" or "FORESERVE_CUDA_DRIVER" in os.environ else code)
        assert code
        assert await reads.say("look") == {"w": digest(path)}
        await copies(memory, 1)


# --- the owner's death


async def test_the_owner_is_killed_and_its_copies_are_taken_over(made, tmp_path, device):
    path, memory = weights_file(tmp_path / "w"), made()
    async with holders(memory, 2, on(device, path)) as (one, other):
        at = await asyncio.gather(one.say("placed"), other.say("placed"))
        await copies(memory, 2)
        was = memory.pid
        os.kill(was, signal.SIGKILL)
        assert await one.say("look") == {"w": digest(path)}  # with no owner at all
        stats, (copy,) = await copies(memory, 2)
        assert stats.pid != was
        assert (stats.loads, stats.uploads, copy.state) == (0, 0, "ready")
        await one.say("rest")
        await copies(memory, 1)
        assert await one.say("wake") == {"w": False}
        async with holders(memory, 1, on(device, path)) as (late,):
            looks = await asyncio.gather(*(each.say("look") for each in (one, other, late)))
            assert looks == [{"w": digest(path)}] * 3
            stats, _ = await copies(memory, 3)
            assert (stats.loads, stats.uploads) == (0, 0)
        assert await asyncio.gather(one.say("placed"), other.say("placed")) == at


async def test_the_owner_is_killed_while_all_rest_and_the_next_one_makes_a_copy(made, tmp_path, device):
    path, memory = weights_file(tmp_path / "w"), made()
    async with holders(memory, 1, on(device, path)) as (holder,):
        await holder.say("placed")
        await holder.say("rest")
        await copies(memory, 0)
        was = memory.pid
        os.kill(was, signal.SIGKILL)
        await until(lambda: memory.pid not in (None, was))
        assert await holder.say("wake") == {"w": True}
        assert await holder.say("look") == {"w": digest(path)}
        stats, _ = await copies(memory, 1)
        assert (stats.loads, stats.uploads) == (0, 1)  # the host's copy was taken over


async def test_the_owner_is_killed_again_and_again_and_everybody_gets_a_copy(made, tmp_path, device):
    path, memory = weights_file(tmp_path / "w", mib=64), made()
    async with holders(memory, 3, on(device, path)) as started:
        looking = [asyncio.create_task(each.say("look")) for each in started]
        for _ in range(2):
            await until(lambda: memory.pid is not None)
            await asyncio.sleep(0.05)
            if memory.pid is not None:
                os.kill(memory.pid, signal.SIGKILL)
        assert await asyncio.gather(*looking) == [{"w": digest(path)}] * 3


async def test_what_cannot_be_copied_is_told_and_the_weights_are_there_all_the_same(made, tmp_path):
    path, memory = weights_file(tmp_path / "w"), made()
    async with holders(memory, 1, on("cuda:7", path), f"x=file:{path}!toaster", "y=file:/nowhere!cuda:7") as (holder,):
        said = await holder.say("placed")
        assert said["w"]
        assert said["x"] == "'toaster' is no device; valid: cpu, cuda, cuda:0, cuda:1, …"
        assert "/nowhere cannot be opened" in said["y"]
        assert (await holder.say("wait"))["w"] == MIB


async def test_without_an_owner_there_is_no_shared_copy(tmp_path):
    path = weights_file(tmp_path / "w")
    holder = await Holder.start(None, on("host-copy", path))
    assert await holder.say("placed") == {"w": "this process has no memory owner"}
    await holder.end()
