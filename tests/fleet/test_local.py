import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import textwrap
import time
from pathlib import Path

import pytest

from foreserve.core import EngineSpec, Work
from foreserve.errors import TooLarge
from foreserve.fleet.contexts import Contexts
from foreserve.fleet.local import LocalLauncher
from foreserve.messages import Abort, Feed, Ready, Run, StartFailed
from foreserve.runtime.worker import ENGINE_FAILED
from tests.fleet.conformance import ENGINES, Conformance, Ear, spec, work

ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def launching(way):
    contexts = Contexts() if way == "forked" else None
    launcher = LocalLauncher(contexts=contexts)
    yield launcher
    await launcher.close()
    if contexts is not None:
        await contexts.close()


@pytest.fixture(params=["fresh", "forked"])
async def launcher(request):
    async with launching(request.param) as launcher:
        yield launcher


@pytest.fixture
def ear():
    return Ear()


class TestFresh(Conformance):
    @pytest.fixture
    async def launcher(self):
        async with launching("fresh") as launcher:
            yield launcher


class TestForked(Conformance):
    @pytest.fixture
    async def launcher(self):
        async with launching("forked") as launcher:
            yield launcher


@pytest.mark.parametrize("way", ["fresh", "forked"])
def test_on_uvloop(way):
    uvloop = pytest.importorskip("uvloop")

    async def life():
        async with launching(way) as launcher:
            await echoes(launcher)

    async def echoes(launcher):
        ear = Ear()
        connection = await launcher.launch("echo-1", spec(), ear)
        await ear.first(Ready)
        connection.send(Run(tuple(work(f"r{number}", *"abcdefgh") for number in range(50))))
        for number in range(50):
            assert (await ear.finish(f"r{number}")).reason == "stop"
            assert ear.words(f"r{number}") == list("abcdefgh")
        os.kill(connection.pid, signal.SIGKILL)
        assert await ear.gone() == "killed by SIGKILL"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(life())


# --- how a worker ends


async def test_kill_9_is_noticed_at_once(launcher, ear):
    connection = await launcher.launch("echo-1", spec(), ear)
    await ear.first(Ready)
    connection.send(Run((work("a", *"abc", step_s=30.0),)))
    os.kill(connection.pid, signal.SIGKILL)
    assert await ear.gone() == "killed by SIGKILL"
    with pytest.raises(ProcessLookupError):
        os.kill(connection.pid, 0)  # reaped: no zombie is left


async def test_a_crash_is_explained_by_its_last_words(launcher, ear, caplog):
    caplog.set_level(logging.INFO)
    connection = await launcher.launch("echo-1", spec("Dies"), ear)
    await ear.first(Ready)
    connection.send(Run((work("a"),)))
    assert await ear.gone() == "exit code 9; its last words: these are my last words"
    assert ear.words("a") == ["before"]
    assert "[echo-1] these are my last words" in caplog.messages


async def test_an_engine_that_has_failed_ends_its_process_at_once_whatever_it_leaves_behind(launcher, ear):
    connection = await launcher.launch("echo-1", spec("Fails"), ear)
    await ear.first(Ready)
    connection.send(Run((work("a", fault="break"),)))
    reason = await ear.gone()
    assert reason.startswith(f"exit code {ENGINE_FAILED}; its last words: ")
    assert reason.endswith("the engine has failed: it has lost its means")


async def test_a_worker_that_hangs_is_ended(launcher, ear):
    connection = await launcher.launch("echo-1", spec(liveness_s=0.6), ear)
    await ear.first(Ready)
    os.kill(connection.pid, signal.SIGSTOP)
    assert await ear.gone() == "silent for 0.6 s"
    assert not _alive(connection.pid)


async def test_what_an_engine_has_started_ends_with_it(launcher, ear, tmp_path):
    engine = tmp_path / "parent.py"
    engine.write_text(
        textwrap.dedent(f"""
        import subprocess, sys
        sys.path.append({str(ENGINES.parent)!r})
        from engines import Echo
        from foreserve.core import EngineInfo

        class Parent(Echo):
            async def start(self):
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
                return EngineInfo(batching="continuous", capacity={{"slots": 1}}, facts={{"child": child.pid}})
        """)
    )
    connection = await launcher.launch("p", EngineSpec(factory=f"{engine}:Parent"), ear)
    child = (await ear.first(Ready)).info.facts["child"]
    os.kill(connection.pid, signal.SIGKILL)
    await ear.gone()
    await _until_dead(child)


async def test_close_leaves_no_process(ear):
    launcher = LocalLauncher()
    connection = await launcher.launch("echo-1", spec(), ear)
    await ear.first(Ready)
    await launcher.close()
    assert not _alive(connection.pid)


PARENT = """
import asyncio, sys
from foreserve.fleet.contexts import Contexts
from foreserve.fleet.local import LocalLauncher
from foreserve.messages import Ready, Run
from tests.fleet.conformance import Ear, spec, work

async def main(engine, step_s, way):
    launcher, ear = LocalLauncher(contexts=Contexts() if way == "forked" else None), Ear()
    connection = await launcher.launch("echo-1", spec(engine), ear)
    await ear.first(Ready)
    connection.send(Run((work("a", *"abc", step_s=step_s),)))
    print(connection.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main(sys.argv[1], float(sys.argv[2]), sys.argv[3]))
"""


@pytest.mark.parametrize("way", ["fresh", "forked"])
@pytest.mark.parametrize(("engine", "step_s"), [("Echo", 0.1), ("LocksInterpreter", 20.0)])
async def test_a_worker_does_not_outlive_its_gateway(engine, step_s, way, tmp_path):
    if engine != "Echo" and sys.platform != "linux":
        pytest.skip("without PDEATHSIG a worker ends after the native call that holds the interpreter's lock")
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "TMPDIR": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, engine, str(step_s), way, stdout=subprocess.PIPE, env=env
    )
    pid = int((await process.stdout.readline()).split()[0])
    await asyncio.sleep(0.2)
    assert _alive(pid)
    process.kill()
    await process.wait()
    await _until_dead(pid)


@pytest.mark.parametrize("ticks", range(5))
async def test_a_cancellation_that_comes_with_the_end_is_not_lost(launcher, ear, ticks):
    connection = await launcher.launch("one", spec(), ear)
    await ear.first(Ready)
    connection.kill()
    waits = asyncio.create_task(connection._gone_within(10.0))
    await connection.gone.wait()
    for _ in range(ticks):
        await asyncio.sleep(0)
    if waits.cancel():
        with pytest.raises(asyncio.CancelledError):
            await waits


async def test_a_worker_ends_when_its_connection_does(launcher, ear):
    connection = await launcher.launch("echo-1", spec(), ear)
    await ear.first(Ready)
    connection._wire._socket.shutdown(socket.SHUT_WR)
    assert (await ear.gone()).startswith(
        "exit code 0; its last words: WARNING foreserve.runtime.worker: the gateway is"
    )


def _engine(folder: Path, on_run: str) -> EngineSpec:
    """An engine whose worker does `on_run` after its first word; `fd` is its end of the connection."""
    path = folder / "faulty.py"
    path.write_text(
        textwrap.dedent(f"""
        import asyncio, os, subprocess, sys
        sys.path.append({str(ENGINES.parent)!r})
        from engines import Echo
        from foreserve.core import Chunk

        class Faulty(Echo):
            async def run(self, work, plan=None):
                yield Chunk(id=work.id, index=0, data={{"word": "before"}})
                await asyncio.sleep(0.05)
                fd = int(sys.argv[1])
                {on_run}
                await asyncio.sleep(60)
        """)
    )
    return EngineSpec(factory=f"{path}:Faulty")


@pytest.mark.parametrize(
    ("on_run", "reason"),
    [
        ("os.close(fd)", "it closed its connection and did not end"),
        ("os.write(fd, bytes([255] * 100))", "it sent a message of 4294967295 bytes; at most 268435456 are carried"),
        ("os.write(fd, bytes([1, 0, 0, 0, 193]))", "it sent a message that this version does not know: "),
    ],
)
async def test_a_worker_that_breaks_its_connection_is_ended(launcher, ear, tmp_path, monkeypatch, on_run, reason):
    monkeypatch.setattr("foreserve.fleet.local_connection.LEAVE_S", 0.1)
    connection = await launcher.launch("f", _engine(tmp_path, on_run), ear)
    await ear.first(Ready)
    connection.send(Run((work("a"),)))
    assert (await ear.gone()).startswith(reason)
    assert ear.words("a") == ["before"]
    assert not _alive(connection.pid)


async def test_a_process_that_a_worker_has_detached_does_not_hide_its_end(launcher, ear, tmp_path):
    """It has the worker's output, and as a fork its end of the connection."""
    pid_file = tmp_path / "pid"
    fork = f"(os.setsid(), open({str(pid_file)!r}, 'w').write(str(os.getpid())), os.execlp('sleep', 'sleep', '60'))"
    on_run = f"os.set_inheritable(fd, True); os.fork() or {fork}; import time; time.sleep(0.3); os._exit(7)"
    connection = await launcher.launch("f", _engine(tmp_path, on_run), ear)
    await ear.first(Ready)
    connection.send(Run((work("a"),)))
    assert await ear.gone() == "exit code 7"
    assert ear.words("a") == ["before"]
    os.kill(int(pid_file.read_text()), signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are seen in /proc")
async def test_a_worker_has_its_own_descriptors_alone(launcher, ear, tmp_path):
    other = Ear()
    await launcher.launch("echo-1", spec(), other)
    await other.first(Ready)
    listing = "subprocess.run(['ls', '-l', '/proc/self/fd']); os._exit(7)"
    connection = await launcher.launch("f", _engine(tmp_path, listing), ear)
    await ear.first(Ready)
    folder = f"/proc/{connection.pid}/fd"
    ours = [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)]
    assert sum(name.startswith("socket:") for name in ours) == 3  # its line, and the pair that its loop wakes itself by
    connection.send(Run((work("a"),)))
    await ear.gone()
    assert "socket:" not in connection._process.last_words(20)  # of what an engine starts
    assert "pipe:" in connection._process.last_words(20)


# --- the two loops do not hinder each other


async def test_an_engine_that_locks_the_interpreter_does_not_stall_the_gateway(launcher, ear):
    other = Ear()
    locked = await launcher.launch("locks-1", spec("LocksInterpreter"), ear)
    free = await launcher.launch("echo-1", spec(), other)
    await ear.first(Ready)
    await other.first(Ready)
    locked.send(Run((work("a", "one", step_s=2.0), work("b", *["one"] * 200, step_s=0.05))))
    for number in range(20):
        free.send(Run((work(f"r{number}", *"ab"),)))
        await other.finish(f"r{number}")
        locked.send(Abort(("b",)))
    assert ear.words("a") == []  # twenty answers of the other while this one's first step lasts
    assert (await ear.finish("a")).reason == "stop"
    assert (await ear.finish("b")).reason == "cancelled"  # commands that came meanwhile are read right after


# --- bounds


async def test_messages_too_long_are_refused_and_the_replica_goes_on(ear):
    launcher = LocalLauncher(max_message_bytes=100_000)
    connection = await launcher.launch("echo-1", spec(), ear)
    await ear.first(Ready)
    connection.send(Run((work("a", data=bytes(200_000)), work("b", "one"))))
    finish = await ear.finish("a")
    assert finish.reason == "rejected"
    assert "at most 100000 are carried" in finish.error
    assert (await ear.finish("b")).reason == "stop"
    connection.send(Run((work("c", *["w" * 60_000] * 3),)))
    assert (await ear.finish("c")).reason == "rejected"
    with pytest.raises(TooLarge, match="200"):
        connection.send(Feed("b", bytes(200_000)))
    connection.send(Run((work("d", "one"),)))
    assert (await ear.finish("d")).reason == "stop"
    await launcher.close()


async def test_a_worker_that_reads_nothing_is_ended(ear):
    launcher = LocalLauncher(max_message_bytes=1_000_000)
    connection = await launcher.launch("echo-1", spec(), ear)
    await ear.first(Ready)
    os.kill(connection.pid, signal.SIGSTOP)
    for _ in range(100_000):
        connection.send(Abort(("a" * 1000,)))
    assert await ear.gone() == "it has stopped reading its messages"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux alone")
async def test_a_leak_ends_in_its_own_call(launcher, ear, tmp_path):
    functions = tmp_path / "leaks.py"
    functions.write_text(
        textwrap.dedent("""
        import threading
        full = threading.Event()

        def call(leak: bool):
            if leak:
                kept = []
                try:
                    while True:
                        kept.append(bytearray(b"x") * 1_000_000)
                finally:
                    del kept
                    full.set()
            full.wait()
            return len(bytearray(50_000_000))
        """)
    )
    spec = EngineSpec(
        factory="foreserve.engines.python:PythonEngine",
        options={"target": f"{functions}:call", "max_running": 2},
        memory_bytes=100_000_000,
    )
    connection = await launcher.launch("f", spec, ear)
    await ear.first(Ready)
    for request_id, leak in (("beside", False), ("leaks", True)):
        connection.send(Run((Work(id=request_id, payload={"args": {"leak": leak}}, cost={}, arrival=0.0),)))
    assert (await ear.finish("leaks")).reason == "error"
    assert "MemoryError" in ear.chunks("leaks")[-1].finish.error
    assert (await ear.finish("beside")).reason == "stop"
    assert ear.chunks("beside")[0].data == 50_000_000


async def test_nothing_is_lost_while_the_gateway_does_not_read(ear, tmp_path):
    engine = tmp_path / "talks.py"
    engine.write_text(
        textwrap.dedent(f"""
        import asyncio, sys
        sys.path.append({str(ENGINES.parent)!r})
        from engines import Echo
        from foreserve.core import Chunk, Finish

        class Talks(Echo):
            async def run(self, work, plan=None):
                for index in range(100):
                    await asyncio.sleep(0)
                    yield Chunk(id=work.id, index=index, data={{"word": str(index), "more": bytes(1_000_000)}})
                yield Chunk(id=work.id, index=100, finish=Finish(reason="stop"))
        """)
    )
    launcher = LocalLauncher(max_message_bytes=2_000_000)
    connection = await launcher.launch("t", EngineSpec(factory=f"{engine}:Talks"), ear)
    await ear.first(Ready)
    connection.send(Run((work("a"),)))
    time.sleep(0.5)  # noqa: ASYNC251  # more comes than the connection holds
    assert ear.words("a") == []
    assert (await ear.finish("a")).reason == "stop"
    assert ear.words("a") == [str(index) for index in range(100)]
    await launcher.close()


async def test_what_cannot_be_encoded_is_refused(launcher, ear):
    connection = await launcher.launch("echo-1", spec(), ear)
    await ear.first(Ready)
    connection.send(Run((Work(id="a", payload=object(), cost={}, arrival=0.0),)))
    finish = await ear.finish("a")
    assert finish.reason == "rejected"
    assert "cannot be sent to the engine" in finish.error
    other = Ear()
    await launcher.launch("echo-2", EngineSpec(factory=f"{ENGINES}:Echo", options={"fact": object()}), other)
    assert "the engine's options are wrong" in (await other.first(StartFailed)).reason
    await other.gone()


async def test_answers_too_long_end_their_request(ear, tmp_path):
    engine = tmp_path / "long.py"
    engine.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.append({str(ENGINES.parent)!r})
        from engines import Echo
        from foreserve.core import Chunk, Finish

        class Long(Echo):
            async def run(self, work, plan=None):
                for size in work.payload["words"]:
                    yield Chunk(id=work.id, index=0, data={{"word": "w" * int(size)}})
                yield Chunk(id=work.id, index=0, finish=Finish(reason="stop"))
        """)
    )
    launcher = LocalLauncher(max_message_bytes=100_000)
    connection = await launcher.launch("long-1", EngineSpec(factory=f"{engine}:Long"), ear)
    await ear.first(Ready)
    connection.send(Run((work("a", "60000", "200000", "10"), work("b", "60000", "60000", "10"))))
    finish = await ear.finish("a")
    assert finish.reason == "error"
    assert "at most 100000 are carried" in finish.error
    assert [len(word) for word in ear.words("a")] == [60_000]
    assert (await ear.finish("b")).reason == "stop"
    assert [len(word) for word in ear.words("b")] == [60_000, 60_000, 10]
    await launcher.close()


# --- interpreters


async def test_surroundings_of_a_worker(launcher, ear, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    await launcher.launch("t", EngineSpec(factory=f"{ENGINES}:Tells", env={"OWN": "1"}), ear)
    facts = (await ear.first(Ready)).info.facts
    assert facts["env"] == {"OMP_WAIT_POLICY": "PASSIVE", "OWN": "1"}
    assert facts["session"]  # a Ctrl-C in the terminal does not reach it
    assert facts["nice"] > os.nice(0)
    assert facts["executable"] == sys.executable
    assert not any(path.endswith(("foreserve/runtime", "foreserve")) for path in facts["path"])


async def test_an_interpreter_that_is_not_there(launcher, ear):
    await launcher.launch("t", EngineSpec(factory="x:y", python="/nowhere/bin/python"), ear)
    failed = await ear.first(StartFailed)
    assert "the interpreter /nowhere/bin/python cannot be run: No such file" in failed.reason
    await ear.gone()


async def test_an_interpreter_of_its_own_sees_foreserve_and_none_of_our_packages(launcher, ear, tmp_path):
    python = _environment(tmp_path, "msgspec")
    await launcher.launch("t", EngineSpec(factory=f"{ENGINES}:Tells", python=str(python)), ear)
    facts = (await ear.first(Ready)).info.facts
    assert facts["executable"] == str(python)
    assert facts["finds"] == {"foreserve": True, "msgspec": True, "numpy": False, "pytest": False}
    assert str(ROOT / "src") not in facts["path"]
    assert facts["env"]["OMP_WAIT_POLICY"] == "PASSIVE"


async def test_an_interpreter_that_lacks_what_a_worker_needs(launcher, ear, tmp_path):
    python = _environment(tmp_path)
    await launcher.launch("t", EngineSpec(factory=f"{ENGINES}:Echo", python=str(python)), ear)
    failed = await ear.first(StartFailed)
    assert f"{python} lacks msgspec" in failed.reason
    assert f"{python} -m pip install msgspec" in failed.reason
    assert "msgspec" in await ear.gone()


def _environment(folder: Path, *packages: str) -> Path:
    """A virtual environment with these of our packages alone; returns its interpreter."""
    home = folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(home)], check=True)
    ours = Path(sysconfig.get_paths()["platlib"])
    theirs = next(home.glob("lib/python3*/site-packages"))
    for package in packages:
        if (ours / package).exists():
            shutil.copytree(ours / package, theirs / package, ignore=shutil.ignore_patterns("tests", "__pycache__"))
    return home / "bin" / "python"


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def _until_dead(pid: int) -> None:
    async with asyncio.timeout(10):
        while _alive(pid):  # noqa: ASYNC110  # a process that is not ours tells of no end
            await asyncio.sleep(0.02)
