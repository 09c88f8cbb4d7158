"""The owner on the test's own loop: what depends on when things happen."""

import asyncio
import hashlib
import os
import resource
import socket
import sys
import threading
from contextlib import asynccontextmanager

import pytest

from foreserve.core import WeightsRef
from foreserve.runtime.memory_line import MOST_LEASES
from foreserve.runtime.memory_messages import (
    Acquire,
    Adopt,
    Ask,
    Given,
    Refused,
    Release,
    client_socket,
    decode_to_client,
    receive,
    send,
)  # fmt: skip
from foreserve.runtime.memory_owner import Owner, OwnerSettings
from foreserve.runtime.memory_sources import memory, seal
from foreserve.runtime.safetensors import arranged

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are handed out on Linux")


def image(fill=1, size=100_000):
    head, _ = arranged({"w": ("U8", (size,))}, "made")
    return head + bytes([fill]) * size


class Client:
    def __init__(self, path):
        self.sock = client_socket()
        self.sock.connect(str(path))

    def say(self, message, *fds):
        send(self.sock, message, fds)

    def acquire(self, number, source, kind="file", sha256=None):
        ref = WeightsRef(name="w", kind=kind, source=str(source), sha256=sha256)
        self.say(Acquire(number, ref, sys.executable))

    async def hear(self):
        data, fd = await asyncio.to_thread(receive, self.sock)
        if fd is not None:
            os.close(fd)
        return decode_to_client(data) if data else None

    async def told(self):
        self.say(Ask(0))
        return await self.hear()


@asynccontextmanager
async def serving(folder, **settings):
    """A client of an owner with these settings."""
    path = folder / "socket"
    with client_socket() as listening:
        listening.bind(str(path))
        listening.listen()
        owner = Owner(listening, OwnerSettings(**{"learn_after_s": 60.0, "chunk_bytes": 10_000, **settings}))
        client = Client(path)
        try:
            yield client
        finally:
            client.sock.close()
            owner.close()
            await asyncio.sleep(0.01)
            path.unlink()


@pytest.fixture
def file(tmp_path):
    (tmp_path / "w").write_bytes(image())
    return tmp_path / "w"


async def until(holds):
    while True:
        if await holds():
            return
        await asyncio.sleep(0.01)


async def test_what_a_file_is_is_learned_behind_its_use(tmp_path, file):
    (tmp_path / "copy").write_bytes(image())
    sha256 = hashlib.sha256(image()).hexdigest()

    async def learned():
        return all(entry.sha256 for entry in (await client.told()).entries)

    async with serving(tmp_path, learn_after_s=0.0, digests=str(tmp_path / "digests.json")) as client:
        client.acquire(1, file)
        first = await client.hear()
        assert (first.key.partition(":")[0], first.sha256) == ("file", None)
        await until(learned)
        client.acquire(2, file)
        assert (await client.hear()).sha256 == sha256
        client.acquire(3, tmp_path / "copy")  # not known yet to be the same
        assert (await client.hear()).key != first.key
        await until(learned)
        client.acquire(4, tmp_path / "copy")
        assert (await client.hear()).key == first.key  # now it is, and both lead to one
    async with serving(tmp_path, digests=str(tmp_path / "digests.json")) as client:
        client.acquire(1, tmp_path / "copy")
        assert (await client.hear()).key == f"sha256:{sha256}"
        client.acquire(2, file)
        assert isinstance(await client.hear(), Given)
        assert (await client.told()).loads == 1
        client.acquire(3, file, sha256="0" * 64)
        assert (await client.hear()).reason == f"{file} has the SHA-256 {sha256}, not {'0' * 64}"


async def test_who_asks_for_what_is_going_waits_and_gets_it(tmp_path, file, monkeypatch):
    from foreserve.runtime import memory_images

    going, free = threading.Event(), memory_images._free

    def slowly(fd):
        assert going.wait(10)
        free(fd)

    monkeypatch.setattr(memory_images, "_free", slowly)
    async with serving(tmp_path, idle_s=0.0) as client:
        client.acquire(1, file)
        await client.hear()
        client.say(Release(1))

        async def evicting():
            return [entry.state for entry in (await client.told()).entries] == ["evicting"]

        await until(evicting)
        client.acquire(2, file)
        told = await client.told()
        assert [(entry.state, entry.references) for entry in told.entries] == [("evicting", 1)]
        going.set()
        assert await client.hear() == Given(2, told.entries[0].sha256 or _key(file), pytest.approx(0, abs=9))
        assert (await client.told()).loads == 2


async def test_what_is_loaded_again_comes_from_where_it_is_asked_for_now(tmp_path, file, monkeypatch):
    """One content has two names; that by which it was loaded first is gone when it is wanted by the other."""
    from foreserve.runtime import memory_images

    going, free, copy = threading.Event(), memory_images._free, tmp_path / "copy"
    monkeypatch.setattr(memory_images, "_free", lambda fd: (going.wait(10), free(fd)))
    copy.write_bytes(image())
    sha256 = hashlib.sha256(image()).hexdigest()
    async with serving(tmp_path, idle_s=0.0) as client:
        for number, path in enumerate((copy, file)):  # both are known to be the same from here on
            client.acquire(number, path, sha256=sha256)
            assert isinstance(await client.hear(), Given)
        client.say(Release(0))
        client.say(Release(1))

        async def evicting():
            return [entry.state for entry in (await client.told()).entries] == ["evicting"]

        await until(evicting)
        copy.unlink()
        client.acquire(2, file, sha256=sha256)
        await client.told()
        going.set()
        assert isinstance(await client.hear(), Given)


def _key(path):
    stat = path.stat()
    return f"file:{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}"


async def test_a_load_that_nobody_waits_for_is_stopped_between_two_chunks(tmp_path, file, monkeypatch):
    from foreserve.runtime import memory_loader

    chunks, go, read = [], threading.Event(), memory_loader._read

    def counted(fd, begin, end, *more):
        chunks.append(begin)
        assert go.wait(10)
        read(fd, begin, end, *more)

    monkeypatch.setattr(memory_loader, "_read", counted)
    async with serving(tmp_path, readers=2) as client:
        client.acquire(1, file)

        async def reading():
            return len(chunks) == 2

        await until(reading)
        client.say(Release(1))
        client.acquire(2, file)  # it waits for the end of that, and begins anew
        assert [entry.state for entry in (await client.told()).entries] == ["evicting"]
        go.set()
        assert isinstance(await client.hear(), Given)
        assert len(chunks) == 2 + 11
        assert chunks[:2] == [0, 10_000]
        assert (await client.told()).bytes_read == file.stat().st_size  # of those that came to their end


async def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, file, monkeypatch):
    from foreserve.runtime import memory_loader

    read = memory_loader._read

    def shortened(fd, begin, end, *more):
        os.truncate(file, 50_000)
        read(fd, begin, end, *more)

    monkeypatch.setattr(memory_loader, "_read", shortened)
    async with serving(tmp_path) as client:
        client.acquire(1, file)
        said = await client.hear()
        assert isinstance(said, Refused)
        assert "while it was read" in said.reason


async def test_only_sealed_images_are_taken_over(tmp_path):
    async with serving(tmp_path) as client:
        ref = WeightsRef(name="w", kind="loader", source="a:b")
        for number, data in enumerate((image(), b"no image at all", image())):
            fd = memory()
            os.write(fd, data)
            given = seal(fd) if number else os.dup(fd)
            client.say(Adopt(number, ref, sys.executable, f"loader:{number}", 2.5), given)
            os.close(fd)
            os.close(given)
        assert (await client.hear()).number == 2
        told = await client.told()
        assert [(entry.references, entry.restore_s, entry.bytes) for entry in told.entries] == [(1, 2.5, len(image()))]
        assert told.loads == 0


async def test_a_file_that_has_changed_is_not_taken_over_with_the_digest_that_it_had(tmp_path, file):
    """Two files would else lead to one memory, from then on and over every restart."""
    was, digests = hashlib.sha256(image()).hexdigest(), tmp_path / "digests.json"
    async with serving(tmp_path, digests=str(digests)) as client:
        file.write_bytes(image(fill=2))  # in place, so that what was mapped of it shows that
        ref = WeightsRef(name="w", source=str(file))
        with file.open("rb") as held:
            client.say(Adopt(1, ref, sys.executable, f"sha256:{was}", 2.5, was), held.fileno())
        assert (await client.hear()).number == 1
        assert not digests.exists()
        client.acquire(2, file, sha256=was)
        assert (await client.hear()).reason.startswith(f"{file} has the SHA-256")
        client.acquire(3, file, sha256=hashlib.sha256(image(fill=2)).hexdigest())
        assert isinstance(await client.hear(), Given)


async def test_without_descriptors_it_waits_rather_than_tries_without_a_pause(tmp_path, file, monkeypatch):
    from foreserve.runtime import memory_owner

    monkeypatch.setattr(memory_owner, "AGAIN_S", 0.05)
    tried, accept = [], socket.socket.accept

    def counted(sock):
        tried.append(sock)
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", counted)
    async with serving(tmp_path) as client:
        assert (await client.told()).entries == ()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        late = Client(tmp_path / "socket")
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        tried.clear()
        try:
            for _ in range(200):
                await asyncio.sleep(0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert 1 <= len(tried) < 20  # of 200 turns of the loop
        late.acquire(1, file)
        assert isinstance(await late.hear(), Given)
        late.sock.close()


async def test_a_client_asks_for_so_much_and_no_more(tmp_path, file):
    async with serving(tmp_path) as client:
        for number in range(MOST_LEASES):
            client.acquire(number + 1, file)
            assert isinstance(await client.hear(), Given)
        assert (await client.told()).entries[0].references == MOST_LEASES
        client.acquire(MOST_LEASES + 1, file)
        assert (await client.hear()).reason == f"one process may have {MOST_LEASES} weights, and this one has them"
        assert (await client.told()).entries[0].references == MOST_LEASES
        client.say(Release(1))
        client.acquire(1, file)
        assert isinstance(await client.hear(), Given)
