from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest

from foreserve.core import EngineSpec
from foreserve.fleet.contexts import Contexts
from foreserve.fleet.local import LocalLauncher
from foreserve.messages import Ready, Run
from foreserve.runtime.forking import unsupported
from tests.fleet.conformance import ENGINES, Ear, work

pytestmark = pytest.mark.skipif(bool(unsupported()), reason=unsupported())

TELLS = """
import os, random, sys
imported = [name for name in ("colorsys", "numpy", "wave", "late_one") if name in sys.modules]
sys.path.append({folder!r})
from engines import Echo
from foreserve.core import EngineInfo

class Tells(Echo):
    async def start(self):
        drawn = [random.random()]
        if "numpy" in sys.modules:
            drawn.append(float(sys.modules["numpy"].random.random()))
        return EngineInfo(batching="continuous", capacity={{"slots": 1}}, facts={{
            "imported": imported, "parent": os.getppid(), "drawn": drawn, "group": os.getpgid(0) == os.getpid(),
            "memory": os.environ.get("FORESERVE_MEMORY"), "own": os.environ.get("OWN"),
            "arguments": len(sys.argv),
        }})
"""


@pytest.fixture(autouse=True)
def one_environment(monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)  # differs between a test's parts, and so would the keys


@pytest.fixture
async def contexts():
    contexts = Contexts()
    yield contexts
    await contexts.close()


@pytest.fixture
async def launcher(contexts):
    launcher = LocalLauncher(contexts=contexts)
    yield launcher
    await launcher.close()


@pytest.fixture
def spec(tmp_path) -> EngineSpec:
    """An engine that tells what its process is like. Modules for `imports` can be put beside it, by `module`."""
    file = tmp_path / "tells.py"
    file.write_text(TELLS.format(folder=str(ENGINES.parent)))
    return EngineSpec(
        factory=f"{file}:Tells", imports=("colorsys",), env={"PYTHONPATH": f"{tmp_path}"}, start_limit_s=30.0
    )


def module(folder: Path, name: str, code: str) -> str:
    (folder / f"{name}.py").write_text(textwrap.dedent(code))
    return name


def with_(spec: EngineSpec, **changes) -> EngineSpec:
    return msgspec.structs.replace(spec, **changes)


async def ready(launcher: LocalLauncher, spec: EngineSpec):
    ear = Ear()
    connection = await launcher.launch("w", spec, ear)
    return connection, ear, (await ear.first(Ready)).info.facts


async def until(true) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_workers_come_out_of_one_process_with_its_imports(contexts, launcher, spec):
    spec = with_(spec, imports=("colorsys", "numpy"))
    first, _, one = await ready(launcher, spec)
    second, _, two = await ready(launcher, spec)
    (context,) = contexts.all
    assert one["parent"] == two["parent"] == context.pid
    assert first.pid != second.pid
    assert one["imported"] == ["colorsys", "numpy"]
    assert one["group"]
    assert one["arguments"] == 4
    assert all(a != b for a, b in zip(one["drawn"], two["drawn"], strict=True))


async def test_imports_may_begin_before_anything_is_launched(contexts, launcher, spec):
    spec = with_(spec, imports=("colorsys", "numpy"))
    launcher.warm(spec)
    (context,) = contexts.all
    for _ in range(3000):
        if context.import_s is None:
            await asyncio.sleep(0.01)
    _, _, one = await ready(launcher, spec)
    assert one["parent"] == context.pid
    assert contexts.all == [context]


async def test_stats(contexts, launcher, spec):
    connection, _, _ = await ready(launcher, spec)
    (stats,) = await contexts.stats()
    assert (stats.interpreter, stats.imports) == (sys.executable, ("colorsys",))
    assert (stats.workers, stats.forks, stats.idle_s) == (1, 1, None)
    assert stats.pss_bytes > 1 << 20
    assert stats.import_s > stats.last_fork_s > 0
    await connection.stop(5.0)
    (stats,) = await contexts.stats()
    assert (stats.workers, stats.forks) == (0, 1)
    assert stats.idle_s is not None


async def test_what_workers_must_have_in_common(contexts, launcher, spec, monkeypatch):
    for memory in ("/one", "/two"):
        monkeypatch.setenv("FORESERVE_MEMORY", memory)
        assert (await ready(launcher, spec))[2]["memory"] == memory
    assert len(contexts.all) == 1, "a variable that is each worker's own"
    for own in ({"OWN": "1"}, {"OWN": "2"}):
        assert (await ready(launcher, with_(spec, env=spec.env | own)))[2]["own"] == own["OWN"]
    await ready(launcher, with_(spec, imports=("wave",)))
    assert len(contexts.all) == 4


async def test_modules_say_what_they_import_later(launcher, spec, tmp_path):
    module(tmp_path, "late_one", "")
    module(tmp_path, "says", "IMPORTED_LATER = ('late_one', 'colorsys')")
    _, _, facts = await ready(launcher, with_(spec, imports=("says",)))
    assert facts["imported"] == ["colorsys", "late_one"]


async def test_a_module_that_cannot_be_imported_is_skipped_and_told(contexts, launcher, spec, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    module(tmp_path, "raises", "raise ValueError('not today')")
    _, _, facts = await ready(launcher, with_(spec, imports=("raises", "nowhere_at_all", "colorsys")))
    assert facts["imported"] == ["colorsys"]
    assert facts["parent"] == contexts.all[0].pid
    assert "context-1: the module raises is not imported beforehand: ValueError: not today" in caplog.messages
    assert "nowhere_at_all is not imported beforehand: ModuleNotFoundError" in caplog.text


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import threading; threading.Thread(target=threading.Event().wait, name='pump', daemon=True).start()", "pump"),
        ("import _thread, threading; _thread.start_new_thread(threading.Event().wait, ())", "1 threads of a native"),
        ("import socket; kept = socket.socket()", "opened what two processes cannot share: socket:"),
        ("import os; os._exit(5)", "it has ended: exit code 5"),
        ("import os; os.abort()", "it has ended: killed by SIGABRT"),
    ],
)
async def test_what_cannot_be_forked_is_started_as_a_new_interpreter(
    contexts, launcher, spec, tmp_path, caplog, code, why
):
    module(tmp_path, "unfit", code)
    for _ in range(2):
        _, _, facts = await ready(launcher, with_(spec, imports=("unfit",)))
        assert facts["parent"] == os.getpid()
    told = [message for message in caplog.messages if "started as new interpreters" in message]
    assert len(told) == 1
    assert why in told[0]
    await until(lambda: not contexts.all)


async def test_a_worker_of_which_nobody_was_told_is_given_up_and_not_begun_twice(launcher, spec, tmp_path):
    module(
        tmp_path,
        "tells_nobody",
        """
        import os, time

        opened = os.pidfd_open

        def ends(pid):
            if pid == os.getpid():
                return opened(pid)
            time.sleep(0.5)  # the copy reads what the gateway has sent
            os._exit(9)

        os.pidfd_open = ends
        """,
    )
    ear = Ear()
    connection = await launcher.launch("one", with_(spec, imports=("tells_nobody",)), ear)
    assert await ear.gone() == "the process that was to fork it is gone: it has ended: exit code 9"
    assert connection.pid is None


async def test_it_is_let_go_after_its_last_worker(spec):
    contexts = Contexts(keep_s=0.05)
    launcher = LocalLauncher(contexts=contexts)
    one, _, facts = await ready(launcher, spec)
    two, _, _ = await ready(launcher, spec)
    await one.stop(5.0)
    await asyncio.sleep(0.2)
    assert [context.offspring.workers for context in contexts.all] == [1]
    await two.stop(5.0)
    await until(lambda: not contexts.all)
    with pytest.raises(ProcessLookupError):
        os.kill(facts["parent"], 0)
    _, _, again = await ready(launcher, spec)
    assert again["parent"] == contexts.all[0].pid != facts["parent"]
    await launcher.close()
    await contexts.close()


async def test_their_number_is_bounded(spec, caplog):
    contexts = Contexts(most=2)
    launcher = LocalLauncher(contexts=contexts)
    other, third = with_(spec, imports=("wave",)), with_(spec, imports=())
    idle, _, _ = await ready(launcher, spec)
    await idle.stop(5.0)
    await ready(launcher, other)
    await ready(launcher, third)  # the idle one makes room
    assert [context.key.imports for context in contexts.all] == [("wave",), ()]
    _, _, facts = await ready(launcher, spec)
    assert facts["parent"] == os.getpid()
    assert "there are 2 processes that fork, and all have workers" in caplog.text
    await launcher.close()
    await contexts.close()


async def test_workers_outlive_their_context_and_their_end_is_noticed(contexts, launcher, spec):
    connection, ear, facts = await ready(launcher, spec)
    os.kill(facts["parent"], signal.SIGKILL)
    await until(lambda: not contexts.all)
    connection.send(Run((work("a", "one"),)))
    assert (await ear.finish("a")).reason == "stop"
    _, _, again = await ready(launcher, spec)
    assert again["parent"] == contexts.all[0].pid != facts["parent"]
    os.kill(connection.pid, signal.SIGKILL)
    assert await ear.gone() == "exit code unknown"
    assert _zombie(connection.pid), "or nothing, as whoever has inherited it likes"


async def test_a_worker_whose_context_hangs_is_ended_nevertheless(launcher, spec, monkeypatch):
    monkeypatch.setattr("foreserve.fleet.forked.TELL_S", 0.1)
    connection, ear, facts = await ready(launcher, spec)
    os.kill(facts["parent"], signal.SIGSTOP)
    connection.kill()
    assert await ear.gone() == "killed"
    os.kill(facts["parent"], signal.SIGCONT)


async def test_stopping_while_it_imports(contexts, launcher, spec, tmp_path):
    module(tmp_path, "slow", "import select; select.select([], [], [], 60)")
    ear = Ear()
    connection = await launcher.launch("w", with_(spec, imports=("slow",)), ear)
    await until(lambda: contexts.all)
    pid = contexts.all[0].pid
    async with asyncio.timeout(10):
        await connection.stop(20.0)
        assert ear.exits == ["stopped"]
        await contexts.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_the_start_limit_holds_for_imports_too(launcher, spec, tmp_path):
    module(tmp_path, "slow", "import select; select.select([], [], [], 60)")
    ear = Ear()
    await launcher.launch("w", with_(spec, imports=("slow",), start_limit_s=0.3), ear)
    assert await ear.gone() == "not ready within 0.3 s"


@pytest.mark.parametrize("turns", range(1, 6))
async def test_a_fork_that_nobody_waits_for_any_more_is_ended(contexts, spec, turns):
    ours, theirs = socket.socketpair()
    ended: list[int | None] = []

    async def fork():
        return await contexts.fork("w", with_(spec, imports=()), theirs, ("1000", "INFO"), ended.append)

    process = await fork()  # the imports are done
    process.kill()
    (context,) = contexts.all
    forking = asyncio.create_task(fork())
    await until(lambda: context.offspring.forks == 2 or turns < 5)
    for _ in range(turns):
        await asyncio.sleep(0)
    forking.cancel()
    (result,) = await asyncio.gather(forking, return_exceptions=True)
    if not isinstance(result, BaseException):  # it was done before
        result.kill()
    await until(lambda: not context.offspring.workers)
    process.close()
    if not isinstance(result, BaseException):
        result.close()
    ours.close()
    theirs.close()


async def test_the_end_of_the_gateway_is_the_end_of_all(tmp_path):
    code = f"""
import asyncio, sys
sys.path[:0] = {[str(Path(__file__).parents[2]), *sys.path]!r}
from foreserve.core import EngineSpec
from foreserve.fleet.contexts import Contexts
from foreserve.fleet.local import LocalLauncher
from foreserve.messages import Ready
from tests.fleet.conformance import ENGINES, Ear

async def main():
    contexts, ear = Contexts(), Ear()
    connection = await LocalLauncher(contexts=contexts).launch("w", EngineSpec(factory=f"{{ENGINES}}:Echo"), ear)
    await ear.first(Ready)
    print(contexts.all[0].pid, connection.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    pids = [int(word) for word in (await process.stdout.readline()).split()]
    process.kill()
    await process.wait()
    for pid in pids:
        await until(lambda pid=pid: not Path(f"/proc/{pid}/cmdline").exists() or _zombie(pid))


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
