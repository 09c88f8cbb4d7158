"""The memory owner as workers meet it: real processes, real files, a real socket."""

import asyncio
import hashlib
import http.server
import mmap
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import msgspec
import pytest

from foreserve.core import EngineSpec, WeightsRef
from foreserve.fleet.local import LocalLauncher
from foreserve.messages import Ready, Run
from foreserve.runtime.footprint import footprint
from foreserve.runtime.memory_messages import Acquire, Given, Refused, client_socket, decode_to_client, receive, send
from tests.fleet.conformance import Ear, work
from tests.fleet.holding import MIB, ROOT, Holder, holders, references, until, weights_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are handed out on Linux")

# --- one copy


async def test_eight_at_once_read_the_bytes_once_and_have_one_copy(made, tmp_path):
    path, memory = weights_file(tmp_path / "w", mib=64), made()
    async with holders(memory, 8, f"w=file:{path}") as started:
        assert await asyncio.gather(*(each.say("wait") for each in started)) == [{"w": 64 * MIB}] * 8
        stats = await memory.stats()
        assert (stats.loads, stats.bytes_read, stats.bytes) == (1, 64 * MIB, 64 * MIB)
        assert (stats.hits, stats.misses) == (7, 1)
        (entry,) = stats.entries
        assert (entry.state, entry.references, entry.names, entry.source) == ("ready", 8, ("w",), str(path))
        assert entry.restore_s > 0
        bare = [(await each.say("memory"))["pss"] for each in started]
        digests = await asyncio.gather(*(each.say("digest") for each in started))
        assert digests == [{"w": hashlib.sha256(path.read_bytes()).hexdigest()}] * 8
        touched = [(await each.say("memory"))["pss"] for each in started]
        grown = sum(touched) - sum(bare) + footprint(stats.pid).pss - stats.memory.pss
        assert 0.8 * 64 * MIB < grown < 1.5 * 64 * MIB
    await references(memory, 0)


async def test_without_an_owner_each_maps_the_file_itself(tmp_path):
    path = weights_file(tmp_path / "w")
    wrong = f"other=file:{path}#{'0' * 64}"
    async with holders(None, 1, f"w=file:{path}", wrong, "gone=file:/nowhere", "uri=uri:https://x/y") as (holder,):
        said = await holder.say("wait")
        assert said["w"] == MIB
        assert said["other"].startswith(f"weights 'other': {path} has the SHA-256 ")
        assert said["gone"] == "weights 'gone': /nowhere cannot be opened: No such file or directory"
        assert "fetched for worker processes alone" in said["uri"]


# --- failures


async def test_a_failure_is_told_to_all_who_wait_and_the_next_request_tries_again(made, tmp_path):
    gate, count = tmp_path / "gate", tmp_path / "count"
    os.mkfifo(gate)
    loader = tmp_path / "loads.py"
    loader.write_text(
        textwrap.dedent(f"""
        import numpy
        def load():
            with open({str(count)!r}, "a") as file:
                file.write("x")
            print("this is no message")
            if open({str(gate)!r}).read() == "fail":
                raise ValueError("the disk is on fire")
            return {{"w": numpy.arange(4.0)}}
        """)
    )
    memory = made()
    async with holders(memory, 3, f"w=loader:{loader}:load") as started:
        waiting = [asyncio.create_task(each.say("wait")) for each in started]
        await references(memory, 3)
        await asyncio.to_thread(gate.write_text, "fail")
        words = f"weights 'w': {loader}:load: ValueError: the disk is on fire"
        assert await asyncio.gather(*waiting) == [{"w": words}] * 3
        assert (await memory.stats()).entries == ()
        for each in started:
            await each.say("begin")
        await references(memory, 3)
        await asyncio.to_thread(gate.write_text, "go on")
        sizes = await asyncio.gather(*(each.say("wait") for each in started))
        assert sizes[0] == sizes[1] == sizes[2]
        assert sizes[0]["w"] > 32
        assert count.read_text() == "xx"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("file:{tmp}/none", "{tmp}/none cannot be opened: No such file or directory"),
        ("file:{tmp}", "{tmp} is no file"),
        ("file:{tmp}/text", "{tmp}/text is no safetensors file, or not all of it is there: its header would have"),
        ("file:{tmp}/w#" + "0" * 64, "{tmp}/w has the SHA-256 "),
        ("loader:{tmp}/l.py:gone", "{tmp}/l.py has no 'gone'; valid: lists, odd, dies"),
        ("loader:{tmp}/l.py:lists", "{tmp}/l.py:lists returned list; valid: a mapping from names to arrays"),
        ("loader:{tmp}/l.py:odd", "{tmp}/l.py:odd: 'w' is int; valid: an array of numpy, a tensor of torch"),
        ("loader:{tmp}/l.py:dies", "{tmp}/l.py:dies: its process ended with -9"),
        ("loader:nowhere_at_all:load", "the package 'nowhere_at_all' is not installed"),
        ("uri:http://127.0.0.1:1/w", "weights may not come from http://127.0.0.1:1/w; allowed (runtime.sources): no"),
    ],
)  # fmt: skip
async def test_what_cannot_be_had_is_told_in_words(made, tmp_path, source, words):
    weights_file(tmp_path / "w")
    (tmp_path / "text").write_text("no weights at all")
    (tmp_path / "l.py").write_text(
        "import os\ndef lists(): return [1]\ndef odd(): return {'w': 1}\ndef dies(): os.kill(os.getpid(), 9)\n"
    )
    memory = made()
    said = await ask(memory, source.format(tmp=tmp_path))
    assert isinstance(said, Refused)
    assert words.format(tmp=tmp_path) in said.reason


async def ask(memory, source, number=1, name="w", sock=None):
    """What the owner answers to one who asks as a worker's thread does. The line stays open until it is collected."""
    kind, _, rest = source.partition(":")
    where, _, sha256 = rest.partition("#")
    ref = WeightsRef(name=name, kind=kind, source=where, sha256=sha256 or None)
    own = sock or line(memory)
    send(own, Acquire(number, ref, sys.executable))
    said = await answer(own)
    if sock is None:
        own.close()
    return said


def line(memory):
    sock = client_socket()
    sock.connect(memory.env()["FORESERVE_MEMORY"])
    return sock


async def answer(sock):
    data, fd = await asyncio.to_thread(receive, sock)
    message = decode_to_client(data)
    if fd is not None:
        with pytest.raises(OSError, match=r"Bad file descriptor|Operation not permitted"):
            os.pwrite(fd, b"x", 0)  # it is open for reading alone
        os.close(fd)
    return message


async def test_messages_that_are_none_end_a_line_and_no_other(made, tmp_path):
    path, memory = weights_file(tmp_path / "w"), made()
    good, bad = line(memory), line(memory)
    assert isinstance(await ask(memory, f"file:{path}", sock=good), Given)
    bad.send(b"\xc1 no message")
    assert await asyncio.to_thread(bad.recv, 100) == b""
    assert isinstance(await ask(memory, f"file:{path}", number=2, sock=good), Given)
    await references(memory, 2)
    good.close()
    bad.close()
    await references(memory, 0)


# --- leases and the end of holders


async def test_a_killed_holder_returns_its_references(made, tmp_path):
    path, memory = weights_file(tmp_path / "w"), made()
    async with holders(memory, 2, f"w=file:{path}") as (one, other):
        await asyncio.gather(one.say("wait"), other.say("wait"))
        await references(memory, 2)
        await one.kill()
        await references(memory, 1)
        assert (await other.say("digest"))["w"]
    stats = await references(memory, 0)
    assert stats.entries[0].state == "ready"  # idle, and warm for the next


async def test_what_is_idle_goes_and_is_read_again_for_the_next(made, tmp_path):
    path, memory = weights_file(tmp_path / "w"), made(host_s=0.0)
    async with holders(memory, 1, f"w=file:{path}") as (holder,):
        await holder.say("wait")
        assert (await memory.stats()).evictions == 0

    async def gone():
        return not (await memory.stats()).entries

    await until(gone)
    assert isinstance(await ask(memory, f"file:{path}"), Given)
    stats = await memory.stats()
    assert (stats.loads, stats.bytes_read) == (2, 2 * MIB)


async def test_pressure_takes_only_what_nobody_holds(made, tmp_path):
    a, b, c, d = (weights_file(tmp_path / name, mib=4) for name in "abcd")
    memory = made(host_gb=12 / 1024)
    async with holders(memory, 1, f"a=file:{a}") as (holder,):
        await holder.say("wait")
        for path in (b, c, d):
            assert isinstance(await ask(memory, f"file:{path}"), Given)
        stats = await memory.stats()
        assert stats.evictions == 1
        assert stats.bytes <= 12 * MIB
        assert str(a) in {entry.source for entry in stats.entries}
        assert (await holder.say("digest"))["a"]
        large = weights_file(tmp_path / "large", mib=16)
        refused = await ask(memory, f"file:{large}")
        assert "it has 16777216 bytes; all weights together may take 12582912 (host_gb)" in refused.reason


async def test_who_finds_no_room_gets_it_when_a_holder_ends(made, tmp_path):
    a, b = (weights_file(tmp_path / name, mib=4) for name in "ab")
    memory = made(host_gb=6 / 1024)
    async with holders(memory, 1, f"a=file:{a}") as (holds,):
        await holds.say("wait")
        waits = await Holder.start(memory, f"b=file:{b}")
        waiting = asyncio.create_task(waits.say("wait"))
        stats = await references(memory, 2)
        assert {entry.source: entry.state for entry in stats.entries} == {str(a): "ready", str(b): "waiting"}
    assert await waiting == {"b": 4 * MIB}
    await waits.end()


@pytest.mark.parametrize(("waits_s", "limit_s"), [(60, 1.0), (0.5, 60.0)])
async def test_a_start_that_waits_for_room_says_so(made, tmp_path, waits_s, limit_s):
    engine = tmp_path / "engine.py"
    engine.write_text(
        textwrap.dedent(f"""
        from foreserve.runtime import leases

        def waits():
            leases.get("b").wait({waits_s})
        """)
    )
    a, b = (weights_file(tmp_path / name, mib=4) for name in "ab")
    memory = made(host_gb=6 / 1024)
    launcher, ear = LocalLauncher(memory=memory), Ear()
    spec = EngineSpec(factory=f"{engine}:waits", weights=(WeightsRef(name="b", source=str(b)),), start_limit_s=limit_s)
    async with holders(memory, 1, f"a=file:{a}") as (holds,):
        await holds.say("wait")
        await launcher.launch("w", spec, ear)
        reason = await ear.gone()
    assert reason.endswith(f": {b} waits until there is room for its {4 * MIB} bytes (host_gb)")
    assert ("not ready within 1 s" in reason) == (limit_s == 1.0)
    await launcher.close()


# --- what is shared


async def test_equal_contents_are_shared_when_that_is_known_and_others_never(made, tmp_path):
    a, b, c = weights_file(tmp_path / "a"), weights_file(tmp_path / "b"), weights_file(tmp_path / "c", fill=2)
    sha256 = hashlib.sha256(a.read_bytes()).hexdigest()
    memory = made()
    with line(memory) as sock:
        given = await ask(memory, f"file:{a}#{sha256}", 1, sock=sock)
        assert given.sha256 == sha256
        assert isinstance(await ask(memory, f"file:{b}#{sha256.upper()}", 2, sock=sock), Given)
        assert isinstance(await ask(memory, f"file:{c}", 3, sock=sock), Given)
        stats = await memory.stats()
        assert stats.loads == 2
        assert sorted(entry.references for entry in stats.entries) == [1, 2]
        refused = await ask(memory, f"file:{c}#{sha256}", 4, sock=sock)  # what is asked for is there, by another name
        assert isinstance(refused, Given)
        other = await ask(memory, f"file:{c}#{'1' * 64}", 5, sock=sock)
        assert f"{c} has the SHA-256 " in other.reason
        digest = hashlib.sha256(a.read_bytes()).hexdigest()
        assert digest == sha256  # nobody has changed it


async def test_what_was_learned_of_a_file_outlives_the_owner(made, tmp_path):
    a, b = weights_file(tmp_path / "a"), weights_file(tmp_path / "b")
    sha256 = hashlib.sha256(a.read_bytes()).hexdigest()
    memory = made()
    for path in (a, b):
        assert isinstance(await ask(memory, f"file:{path}#{sha256}"), Given)
    known = tmp_path / "cache" / "weights.json"
    await until(lambda: known.exists() and sha256 in known.read_text())
    os.kill(memory.pid, signal.SIGKILL)
    await until(lambda: memory.pid is None)
    with line(memory) as sock:
        given = await ask(memory, f"file:{a}", sock=sock)
        assert given.key == f"sha256:{sha256}"


async def test_a_file_that_was_changed_is_another(made, tmp_path):
    path, memory = weights_file(tmp_path / "w"), made()
    with line(memory) as sock:
        assert isinstance(await ask(memory, f"file:{path}", 1, sock=sock), Given)
        new = weights_file(tmp_path / "new", fill=9)
        new.replace(path)
        assert isinstance(await ask(memory, f"file:{path}", 2, sock=sock), Given)
        os.utime(path, ns=(1, 1))
        assert isinstance(await ask(memory, f"file:{path}", 3, sock=sock), Given)
        stats = await memory.stats()
        assert (stats.loads, [entry.references for entry in stats.entries]) == (3, [1, 1, 1])


# --- loaders and addresses


async def test_what_a_loader_makes_is_shared_sealed_memory(made, tmp_path):
    loader = tmp_path / "loads.py"
    loader.write_text(
        "import numpy\ndef load():\n"
        "    return {'b': numpy.ones((3, 2), '>f4'), 'a': numpy.arange(5), 'n': numpy.float64(2)}\n"
    )
    memory = made()
    async with holders(memory, 2, f"w=loader:{loader}:load") as (one, other):
        assert await one.say("digest") == await other.say("digest")
        stats = await memory.stats()
        assert (stats.loads, stats.entries[0].references, stats.entries[0].kind) == (1, 2, "loader")
        assert " r--s " in _mapping(one.pid)
        fd = os.open(f"/proc/{one.pid}/fd/{_memfd(one.pid)}", os.O_RDWR)  # as nobody should, and root may
        for change in (lambda: os.write(fd, b"x"), lambda: os.ftruncate(fd, 1), lambda: mmap.mmap(fd, 0)):
            with pytest.raises(PermissionError):
                change()
        os.close(fd)


def _mapping(pid):
    (mapping,) = [row for row in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd:foreserve" in row]
    return mapping


def _memfd(pid):
    folder = Path(f"/proc/{pid}/fd")
    return next(fd.name for fd in folder.iterdir() if "memfd:foreserve-weights" in os.readlink(fd))


@pytest.fixture
def server(tmp_path):
    """Serves `/ok/w`; the rest as its name says. Counts what it was asked for."""
    whole = weights_file(tmp_path / "served").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            server.asked.append(self.path)
            match self.path:
                case "/ok/w" | "/secret/w":
                    self.answer(200, {"Content-Length": str(len(whole))}, whole)
                case "/ok/unknown-length":
                    self.answer(200, {"Connection": "close"}, whole)
                case "/ok/broken":
                    self.answer(200, {"Content-Length": str(2 * len(whole)), "Connection": "close"}, whole)
                case "/ok/moved":
                    self.answer(302, {"Location": "/ok/w", "Content-Length": "0"}, b"")
                case "/ok/away":
                    self.answer(302, {"Location": "/secret/w", "Content-Length": "0"}, b"")
                case "/ok/file":
                    self.answer(302, {"Location": "file:///etc/passwd", "Content-Length": "0"}, b"")
                case _:
                    self.answer(404, {"Content-Length": "0"}, b"")

        def answer(self, status, headers, body):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.sha256 = hashlib.sha256(whole).hexdigest()
        server.address = f"http://127.0.0.1:{server.server_address[1]}/ok/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_weights_by_address_are_fetched_once_and_known_by_their_content(made, server):
    memory = made(sources=[server.address])
    async with holders(memory, 3, f"w=uri:{server.address}w") as started:
        digests = await asyncio.gather(*(each.say("digest") for each in started))
        assert digests == [{"w": server.sha256}] * 3
        assert server.asked == ["/ok/w"]
        assert isinstance(await ask(memory, f"uri:{server.address}other#{server.sha256}"), Given)  # it is here
        stats = await memory.stats()
        assert (stats.loads, stats.bytes_read) == (1, MIB)
    for page in ("moved", "unknown-length"):
        assert isinstance(await ask(memory, f"uri:{server.address}{page}"), Given)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("away", "leads elsewhere: weights may not come from http://127.0.0.1"),
        ("file", "Redirection to url 'file:///etc/passwd' is not allowed"),
        ("none", "the server answered 404 Not Found"),
        ("broken", "the server ended after 1048576 of 2097152 bytes"),
        ("w#" + "0" * 64, "has the SHA-256 "),
        ("../secret/w", "it has '..'"),
        ("%2e%2e/secret/w", "it has '..'"),
    ],
)
async def test_weights_come_only_from_allowed_addresses_and_whole(made, server, page, words):
    memory = made(sources=[server.address])
    refused = await ask(memory, f"uri:{server.address}{page}")
    assert words in refused.reason
    assert "/secret/w" not in server.asked
    assert not any("secret" in path for path in server.asked)


async def test_weights_by_address_have_to_fit(made, server):
    memory = made(sources=[server.address], host_gb=0.5 / 1024)
    for page in ("w", "unknown-length"):
        refused = await ask(memory, f"uri:{server.address}{page}")
        assert "all weights together may take 524288 (host_gb)" in refused.reason


# --- the owner's life


async def test_where_no_socket_can_be_had_workers_load_by_themselves_and_nothing_is_left(made, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    memory = made()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert [memory.env(), memory.env()] == [{}, {}]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("foreserve-")]
    assert memory.env()  # the next finds one


async def test_there_is_no_owner_before_it_is_wanted(made):
    memory = made()
    assert memory.env()
    await asyncio.sleep(0)
    assert memory.pid is None
    assert await memory.stats() is None


async def test_the_owner_killed_under_load_loses_nothing(made, tmp_path):
    """Workers keep what they have; the next owner takes it over without reading; who waited gets it."""
    path, slow = weights_file(tmp_path / "w", mib=8), tmp_path / "loads.py"
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    slow.write_text(
        f"import numpy\ndef load():\n    open({str(gate)!r}).read()\n    return {{'w': numpy.arange(9)}}\n"
        "def quick():\n    return {'w': numpy.arange(7)}\n"
    )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    memory = made()
    async with holders(memory, 2, f"w=file:{path}", f"q=loader:{slow}:quick") as held:
        sizes = await asyncio.gather(*(each.say("wait") for each in held))
        async with holders(memory, 2, f"s=loader:{slow}:load") as waiting:
            said = [asyncio.create_task(each.say("wait")) for each in waiting]
            await references(memory, 6)
            os.kill(memory.pid, signal.SIGKILL)
            assert {(await each.say("digest"))["w"] for each in held} == {sha256}
            stats = await references(memory, 6)
            assert stats.bytes_read == 0  # adopted, and what was waited for is being made again
            await asyncio.to_thread(gate.write_text, "go")
            assert (await said[0])["s"] == (await said[1])["s"] > 72
        async with holders(memory, 1, f"w=file:{path}", f"q=loader:{slow}:quick") as (late,):
            assert await late.say("wait") == sizes[0]
        stats = await references(memory, 4)
        assert stats.loads == 1  # of the slow one
    await references(memory, 0)


async def test_owners_that_die_at_once_are_not_started_faster_and_faster(made, monkeypatch, tmp_path):
    monkeypatch.setattr("foreserve.fleet.memory.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("foreserve.fleet.memory.MOST_PAUSE_S", 0.04)
    memory, pauses = made(), []
    path = weights_file(tmp_path / "w")
    for _ in range(4):
        with line(memory):
            pid = await until(lambda: memory.pid)
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: memory.pid != pid)
            pauses.append(memory._pause_s)
    assert pauses == [0.01, 0.02, 0.04, 0.04]
    assert isinstance(await ask(memory, f"file:{path}"), Given)


PARENT = """
import asyncio, sys
from pathlib import Path
from foreserve.core import WeightsRef
from foreserve.fleet.memory import Memory
from foreserve.settings import RuntimeSettings

async def main():
    memory = Memory(RuntimeSettings())
    memory.prefetch([WeightsRef(name="w", source=sys.argv[1])])
    while (stats := await memory.stats()) is None or stats.loads == 0:
        await asyncio.sleep(0.02)
    print(memory.pid, memory.env()["FORESERVE_MEMORY"], flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_the_owner_does_not_outlive_its_gateway(tmp_path):
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", PARENT, str(weights_file(tmp_path / "w"))]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=env)
    pid, path = (await process.stdout.readline()).decode().split()
    assert Path(path).parent.stat().st_mode & 0o777 == 0o700
    process.kill()
    await process.wait()
    await until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])
    assert not Path(path).parent.exists()


# --- with a launcher


async def test_an_interpreter_of_its_own_has_the_same_memory(made, tmp_path):
    home = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(home)], check=True)  # noqa: ASYNC221
    site = next(home.glob("lib/python3*/site-packages"))
    shutil.copytree(Path(msgspec.__file__).parent, site / "msgspec", ignore=shutil.ignore_patterns("__pycache__"))
    engine = tmp_path / "engine.py"
    engine.write_text(
        textwrap.dedent("""
        import os, sys
        from foreserve.core import EngineInfo
        from foreserve.runtime import leases

        class Tells:
            async def start(self):
                size, owner = leases.get("w").wait(30).nbytes, os.environ[leases.MEMORY]
                facts = {"python": sys.executable, "bytes": size, "owner": owner}
                return EngineInfo(batching="continuous", capacity={"slots": 1}, facts=facts)

            async def load(self):
                raise NotImplementedError

            async def close(self):
                pass
        """)
    )
    path, memory = weights_file(tmp_path / "w"), made()
    launcher, ear = LocalLauncher(memory=memory), Ear()
    python = str(home / "bin" / "python")
    spec = EngineSpec(factory=f"{engine}:Tells", python=python, weights=(WeightsRef(name="w", source=str(path)),))
    try:
        await launcher.launch("t", spec, ear)
        facts = (await ear.first(Ready)).info.facts
        assert facts == {"python": python, "bytes": MIB, "owner": memory.env()["FORESERVE_MEMORY"]}
        assert (await references(memory, 1)).loads == 1
    finally:
        await launcher.close()


async def test_weights_are_on_their_way_before_the_workers_process(made, tmp_path):
    engine = tmp_path / "engine.py"
    engine.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.append({str(Path(__file__).parent)!r})
        from engines import Echo
        from foreserve.core import EngineInfo
        from foreserve.runtime import leases

        class Sums(Echo):
            async def start(self):
                facts = {{"sum": sum(leases.get("w").wait(30).image)}}
                return EngineInfo(batching="continuous", capacity={{"slots": 1}}, facts=facts)

        class Scribbles(Echo):
            def __init__(self):
                super().__init__()
                self.image = leases.get("w").wait(30).image

            async def run(self, work, plan=None):
                scribble(self.image)
                yield

        def scribble(image):
            import ctypes, numpy
            ctypes.memset(numpy.frombuffer(image, "uint8").ctypes.data, 0, 8)
        """)
    )
    path, memory = weights_file(tmp_path / "w"), made()
    before = path.read_bytes()
    launcher = LocalLauncher(memory=memory)
    ref = WeightsRef(name="w", source=str(path))
    try:
        ear = Ear()
        spec = EngineSpec(factory=f"{engine}:Sums", weights=(ref,))
        await launcher.launch("s", spec, ear)
        stats = await references(memory, 1)  # ours, for the worker that is not up yet
        assert (await ear.first(Ready)).info.facts["sum"] == sum(before)
        stats = await references(memory, 1)  # the worker's
        assert (stats.loads, stats.misses, stats.hits) == (1, 1, 1)
        other = Ear()
        connection = await launcher.launch("x", EngineSpec(factory=f"{engine}:Scribbles", weights=(ref,)), other)
        await other.first(Ready)
        await references(memory, 2)
        connection.send(Run((work("a"),)))
        reason = await other.gone()
        assert reason.startswith("killed by SIGSEGV; its last words: Fatal Python error: Segmentation fault")
        assert "in scribble" in reason
        await references(memory, 1)
        assert path.read_bytes() == before
    finally:
        await launcher.close()
    await references(memory, 0)
