import asyncio
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from foreserve.errors import EngineStartError
from foreserve.runtime.memory_sources import fetch, is_sealed, memory, refusal, run_loader, seal
from tests.fleet.holding import until

SOURCES = ["https://models.example.org/", "http://10.0.0.1:8080/weights/"]


@pytest.mark.parametrize(
    "address", ["https://models.example.org/a/b.safetensors?x=1", "http://10.0.0.1:8080/weights/w", SOURCES[0]]
)
def test_allowed_addresses(address):
    assert refusal(address, SOURCES) is None


@pytest.mark.parametrize(
    "address",
    [
        "https://models.example.org.evil.org/w", "https://models.example.org@evil.org/w", "https://evil.org/w",
        "http://models.example.org/w", "HTTPS://models.example.org/w", "http://10.0.0.1:8080/weights",
        "http://10.0.0.1:8080/weights/../secret", "http://10.0.0.1:8080/weights/%2E%2e/secret",
        "http://10.0.0.1:8080/weights/a\\..\\..\\b", "http://10.0.0.1:8080/weights/a b", "file:///etc/passwd", "", "w",
        "http://10.0.0.1:8080/weights/a\r\nHost: evil.org",
    ],
)  # fmt: skip
def test_other_addresses_are_refused_in_words(address):
    assert "weights may not come from" in refusal(address, SOURCES)


async def no_room(size):
    raise EngineStartError(f"no room for {size}")


async def room(size):
    pass


async def test_nothing_is_fetched_from_elsewhere():
    with pytest.raises(EngineStartError, match=r"allowed \(runtime\.sources\): nothing"):
        await fetch("http://127.0.0.1:1/w", [], 1, room)


async def test_a_server_that_is_not_there():
    with pytest.raises(EngineStartError, match=r"127\.0\.0\.1:1/w: .*refused"):
        await fetch("http://127.0.0.1:1/w", ["http://127.0.0.1:1/"], 1, room)


async def test_a_server_that_is_slow_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr("foreserve.runtime.memory_sources.FETCH_S", 0.05)
    monkeypatch.setattr("foreserve.runtime.memory_sources.READ_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(EngineStartError, match=r"it took longer than 0\.05 s"):
            await fetch(address, [address], 1, room)
        await asyncio.sleep(0.3)  # the thread that has waited for it ends


async def test_a_cancelled_fetch_ends_when_nothing_is_written_any_more(monkeypatch):
    """Its descriptor is closed next, and its number may be another's at once."""
    writing, go, written = threading.Event(), threading.Event(), []

    def slowly(fd, data):
        writing.set()
        assert go.wait(10)
        written.append(os.write(fd, data))

    monkeypatch.setattr("foreserve.runtime.memory_sources._write", slowly)

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address, fd = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", memory()
    async with server:
        task = asyncio.create_task(fetch(address, [address], fd, room))
        await asyncio.to_thread(writing.wait)
        for _ in range(2):  # its time may be over as well
            task.cancel()
            await asyncio.sleep(0.02)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert written == [5]
    os.close(fd)


async def test_a_server_that_falls_silent_holds_nobody_up_when_it_is_given_up():
    given_up, heard = threading.Event(), []

    def serve():
        sock, _ = listening.accept()
        with sock:
            sock.recv(4096)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
            heard.append(given_up.wait(3.0))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        address, fd = f"http://127.0.0.1:{listening.getsockname()[1]}/", memory()
        server = asyncio.create_task(asyncio.to_thread(serve))
        reading = asyncio.Event()

        async def room(size):
            reading.set()

        task = asyncio.create_task(fetch(address, [address], fd, room))
        await reading.wait()
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        given_up.set()
        await server
        os.close(fd)
    assert heard == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="seals are Linux's")
def test_what_is_sealed_stays_as_it_is():
    fd = memory()
    os.write(fd, b"weights")
    assert not is_sealed(fd)
    sealed = seal(fd)
    assert is_sealed(sealed)
    for each in (fd, sealed):
        with pytest.raises(OSError, match=r"not permitted|Bad file descriptor"):
            os.pwrite(each, b"x", 0)
    assert os.pread(sealed, 9, 0) == b"weights"
    os.close(fd)
    os.close(sealed)


# --- loaders


@pytest.fixture
def loads(tmp_path):
    """`loads(name, room, python, limit_s)`: the bytes that this loader makes."""
    path = tmp_path / "loads.py"
    path.write_text(
        "import time, numpy\n"
        "def quick(): return {'a': numpy.ones(3, 'float32')}\n"
        "def slow(): time.sleep(60)\n"
        "def odd(): return {'a': numpy.array(['text'])}\n"
        "def complex(): return {'a': numpy.ones(3, 'complex128')}\n"
        "def number(): return {1: numpy.ones(3)}\n"
        "def ends(): raise SystemExit(5)\n"
        "def forks():\n"
        "    import os\n"
        "    if (pid := os.fork()) == 0:\n"
        "        os.setsid()\n"  # nothing that ends its session ends it, and it has all that its parent had open
        "        time.sleep(60)\n"
        "        os._exit(0)\n"
        "    open(__file__ + '.pid', 'w').write(str(pid))\n"
        "    return quick()\n"
        "def leaves():\n"
        "    import subprocess, sys, os\n"
        "    child = subprocess.Popen(['sleep', '60'])\n"
        "    open(__file__ + '.pid', 'w').write(str(child.pid))\n"
        "    time.sleep(60 if os.path.exists(__file__ + '.late') else 0)\n"
        "    return quick()\n"
    )

    async def run(name, room=room, python=sys.executable, limit_s=30.0):
        fd = memory()
        try:
            await run_loader(f"{path}:{name}", python, fd, room, limit_s)
            return os.pread(fd, 10_000, 0)
        finally:
            os.close(fd)

    run.path = path
    return run


@pytest.mark.parametrize("late", [False, True])
async def test_what_a_loader_has_started_ends_with_it(loads, late):
    if late:
        loads.path.with_name("loads.py.late").touch()
        with pytest.raises(EngineStartError, match="longer than"):
            await loads("leaves", limit_s=5.0)
    else:
        assert await loads("leaves")
    pid = int(loads.path.with_name("loads.py.pid").read_text())

    def running():
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    await until(lambda: not running())


async def test_what_a_loader_has_forked_is_not_waited_for(loads):
    try:
        assert (await loads("forks", limit_s=20.0)).endswith(bytes.fromhex("0000803f") * 3)
    finally:
        os.kill(int(loads.path.with_name("loads.py.pid").read_text()), signal.SIGKILL)


async def test_a_loader_writes_an_image_once_there_is_room(loads):
    asked = []

    async def room(size):
        asked.append(size)

    image = await loads("quick", room)
    assert asked == [len(image)]
    assert image.endswith(bytes.fromhex("0000803f") * 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("odd", "'a' has dtype str.*; valid: bool, uint8"),
        ("complex", "'a' has dtype complex128; valid"),
        ("number", "an array called 1; valid: names that are text"),
        ("ends", "SystemExit: 5"),
        ("absent", "has no 'absent'; valid: quick, slow"),
    ],
)
async def test_what_a_loader_does_wrong_is_told(loads, name, words):
    with pytest.raises(EngineStartError, match=words):
        await loads(name)


async def test_a_loader_is_bounded_in_time_and_room(loads):
    with pytest.raises(EngineStartError, match=r"loads\.py:slow: it took longer than 0\.3 s"):
        await loads("slow", limit_s=0.3)
    with pytest.raises(EngineStartError, match="no room for"):
        await loads("quick", no_room)


async def test_a_loader_wants_its_interpreter(loads):
    with pytest.raises(EngineStartError, match="the interpreter /nowhere/python cannot be run"):
        await loads("quick", python="/nowhere/python")


async def test_a_cancelled_loader_ends(loads):
    task = asyncio.create_task(loads("slow"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5.0)
