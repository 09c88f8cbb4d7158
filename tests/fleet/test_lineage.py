"""Contexts that learn what their workers import, with real processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import textwrap
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from foreserve.core import EngineSpec
from foreserve.fleet import learner
from foreserve.fleet.contexts import Contexts
from foreserve.fleet.learned import Learned, Remembered
from foreserve.fleet.learner import Learner
from foreserve.fleet.local import LocalLauncher
from foreserve.messages import Ready
from foreserve.runtime.forking import unsupported
from tests.fleet.conformance import ENGINES, Ear

pytestmark = pytest.mark.skipif(bool(unsupported()), reason=unsupported())

ENGINE = """
import importlib, os, sys
known = set(sys.modules)
sys.path.append({folder!r})
from engines import Echo
from foreserve.core import EngineInfo

class Lazy(Echo):
    def __init__(self, imports, sets=()):
        super().__init__()
        self.imports, self.sets = imports, sets

    async def start(self):
        os.environ.update(dict.fromkeys(self.sets, "1"))
        for name in self.imports:
            try:
                importlib.import_module(name)
            except Exception:
                pass
        there = [name for name in self.imports if name in known]
        return EngineInfo(batching="continuous", capacity={{"slots": 1}}, facts={{
            "there": there, "parent": os.getppid(), "others": sorted(n for n in known if n.startswith("lazy_")),
        }})
"""

BAD = {
    "lazy_thread": "import threading; threading.Thread(target=threading.Event().wait, name='p', daemon=True).start()",
    "lazy_file": "kept = open(__file__)",
    "lazy_exits": "import os, sys\nif len(sys.argv) == 2: os._exit(5)",
    "lazy_crashes": "import os, sys\nif len(sys.argv) == 2: os.abort()",
    "lazy_raises": "import sys\nif len(sys.argv) == 2: raise ValueError('not in a context')",
}
"""Modules that a worker imports well, and what forks must not. A worker has three arguments, a context one or two."""


class House:
    """A launcher whose contexts learn at once, and the folder that its engine and modules lie in."""

    def __init__(self, folder: Path, path: Path | None, **words) -> None:
        self.folder = folder
        self.remembered = Remembered(path)
        self.remembered.load()
        self.contexts = Contexts(remembered=self.remembered, worth_s=0.0, **words)
        self.launcher = LocalLauncher(contexts=self.contexts)
        self.connections: list = []

    def module(self, name: str, code: str = "") -> str:
        (self.folder / f"{name}.py").write_text(textwrap.dedent(code))
        return name

    def spec(self, *imports: str, sets: tuple[str, ...] = (), **words) -> EngineSpec:
        file = self.folder / "own" / "lazy.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(ENGINE.format(folder=str(ENGINES.parent)))
        options = {"imports": imports, "sets": sets}
        env = {"PYTHONPATH": f"{self.folder}", "PYTHONDONTWRITEBYTECODE": "1"}
        return EngineSpec(factory=f"{file}:Lazy", options=options, env=env, start_limit_s=30.0, **words)

    async def ready(self, spec: EngineSpec) -> dict:
        """The facts of one more worker."""
        ear = Ear()
        self.connections.append(await self.launcher.launch("w", spec, ear))
        return (await ear.first(Ready)).info.facts

    async def until(self, true) -> None:
        async with asyncio.timeout(20):
            while not true():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def learned(self, *names: str) -> Learned:
        """What is known once all copies are done and the newest has imported `names`."""
        found = self.learner
        await self.until(lambda: found.copying is None and found.there >= set(names) and found.keeping is not None)
        await asyncio.wait([found.keeping])
        return found.learned

    @property
    def learner(self) -> Learner:
        """Of the only lineage."""
        (found,) = self.contexts.lineages
        assert found.learner is not None
        return found.learner

    @property
    def names(self) -> list[str]:
        return [context.name for context in self.contexts.all]

    async def close(self) -> None:
        await self.launcher.close()
        await self.contexts.close()


@pytest.fixture(autouse=True)
def one_environment(monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)  # differs between a test's parts, and so would the keys


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(learner, "PATIENCE_S", 30.0)


@pytest.fixture
def open_house(tmp_path):
    @asynccontextmanager
    async def opened(**words):
        house = House(tmp_path / "code", tmp_path / "state" / "imports.json", **words)
        house.folder.mkdir(exist_ok=True)
        try:
            yield house
        finally:
            await house.close()

    return opened


async def test_the_next_worker_has_what_the_first_imported(open_house):
    async with open_house() as house:
        spec = house.spec(house.module("lazy_one", "import lazy_two"))
        house.module("lazy_two")
        first = await house.ready(spec)
        assert first["there"] == []
        learned = await house.learned("lazy_one")
        assert {"lazy_one", "lazy_two"} <= set(learned.modules)
        assert not any("foreserve_file" in name or name == "engines" for name in learned.modules)
        assert house.names == ["context-1", "context-1+1"]
        second = await house.ready(spec)
        assert second["others"] == ["lazy_one", "lazy_two"]
        assert second["parent"] == house.contexts.all[-1].pid != first["parent"]
        await house.connections[0].stop(5.0)
        await house.until(lambda: house.names == ["context-1+1"])
        assert (await house.ready(spec))["there"] == ["lazy_one"]
        assert house.names == ["context-1+1"], "there was nothing more to learn"


@pytest.mark.parametrize("bad", BAD)
async def test_a_module_that_must_not_be_imported_costs_itself_alone(open_house, bad):
    async with open_house() as house:
        modules = [house.module("lazy_good"), house.module(bad, BAD[bad]), house.module("lazy_last")]
        await house.ready(house.spec(*modules))
        learned = await house.learned("lazy_good", "lazy_last")
        assert learned.bad.keys() == {bad}
        assert (await house.ready(house.spec(*modules)))["there"] == ["lazy_good", "lazy_last"]
        assert len(house.contexts.all) == 2
    async with open_house() as house:  # it is known the next time
        assert (await house.ready(house.spec(*modules)))["there"] == ["lazy_good", "lazy_last"]
        await house.until(lambda: house.names == ["context-1+1"])


async def test_of_many_bad_ones_the_last_copy_has_what_is_sure(open_house, monkeypatch):
    monkeypatch.setattr(learner, "MOST_COPIES", 3)
    async with open_house() as house:
        good = house.module("lazy_good")
        bad = [house.module(f"lazy_bad{at}", BAD["lazy_thread"]) for at in range(4)]
        await house.ready(house.spec(good, *bad, house.module("lazy_last")))
        learned = await house.learned(good)
        assert learned.bad.keys() == {"lazy_bad0", "lazy_bad1"}
        assert house.names == ["context-1", "context-1+3"]


async def test_a_module_that_hangs_keeps_nobody(open_house, monkeypatch):
    monkeypatch.setattr(learner, "LEARN_LIMIT_S", 2.0)
    async with open_house() as house:
        hangs = house.module("lazy_hangs", "import select, sys\nif len(sys.argv) == 2: select.select([], [], [], 60)")
        spec = house.spec(house.module("lazy_good"), hangs)
        await house.ready(spec)
        assert (await house.ready(spec))["there"] in ([], ["lazy_good"])
        learned = await house.learned("lazy_good")
        assert learned.bad == {"lazy_hangs": "it imports for over 2 s"}


async def test_what_is_remembered_is_there_for_the_first_worker(open_house):
    async with open_house() as house:
        spec = house.spec(house.module("lazy_one"))
        await house.ready(spec)
        await house.learned("lazy_one")
    async with open_house() as house:
        assert (await house.ready(spec))["there"] == ["lazy_one"]
        await house.until(lambda: house.names == ["context-1+1"])
    async with open_house() as house:
        house.launcher.warm(spec)
        await house.until(lambda: house.names == ["context-1+1"])
        assert house.contexts.up(spec)
    async with open_house() as house:
        house.module("lazy_new")  # the folder is not what it was
        await house.ready(spec)
        learned = await house.learned("lazy_one")
        assert "lazy_one" in learned.modules
        assert house.names == ["context-1", "context-1+1"]


async def test_who_waits_for_what_is_remembered_does_not_wait_long(open_house, monkeypatch):
    monkeypatch.setattr(learner, "PATIENCE_S", 0.2)
    async with open_house() as house:
        spec = house.spec(house.module("lazy_one"))
        await house.ready(spec)
        learned = await house.learned("lazy_one")
        learned.took_s = 0.1
        house.remembered.keep(house.remembered.snapshot(learned))
    mark = house.folder.stat()
    house.module("lazy_one", "import select, sys\nif len(sys.argv) == 2: select.select([], [], [], 60)")
    os.utime(house.folder, ns=(mark.st_atime_ns, mark.st_mtime_ns))
    async with open_house() as house:
        assert (await house.ready(spec))["there"] == []
        assert house.names == ["context-1"]


async def test_what_workers_set_keeps_their_imports_to_themselves(open_house, caplog):
    caplog.set_level(logging.INFO)
    async with open_house() as house:
        same = house.module("lazy_same", "import os; os.environ['LAZY_SAME'] = '1'")
        await house.ready(house.spec(same, sets=("LAZY_SAME",)))
        assert not (await house.learned(same)).refused
    async with open_house() as house:
        await house.ready(house.spec(same, sets=("LAZY_OWN",)))
        await house.until(lambda: house.learner.learned.refused)
        learned = await house.learned()
        assert learned.refused == "workers set LAZY_OWN before they are ready"
    async with open_house() as house:
        assert (await house.ready(house.spec(same)))["there"] == []
        assert house.names == ["context-1"]
    assert "what its workers import is left to them: workers set LAZY_OWN" in caplog.text


async def test_what_is_not_to_be_learned(open_house):
    async with open_house() as house:
        modules = house.module("lazy_own"), house.module("lazy_one")
        await house.ready(house.spec(*modules, own="lazy_own"))
        assert "lazy_own" not in (await house.learned("lazy_one")).modules
    async with open_house() as house:
        await house.ready(house.spec(*modules, imports=("wave",), learn=False))
        await house.ready(house.spec(*modules, imports=("wave",), learn=False))
        assert house.names == ["context-1"]


@pytest.mark.parametrize(("remembers", "worth_s"), [(False, 0.0), (True, 60.0)], ids=["no memory", "no time taken"])
async def test_nothing_is_learned_without_memory_and_of_a_start_that_takes_no_time(tmp_path, remembers, worth_s):
    house = House(tmp_path, None)
    house.contexts = Contexts(remembered=house.remembered if remembers else None, worth_s=worth_s)
    house.launcher = LocalLauncher(contexts=house.contexts)
    spec = house.spec(house.module("lazy_one"))
    for _ in range(2):
        assert (await house.ready(spec))["there"] == []
    assert house.names == ["context-1"]
    await house.close()


async def test_when_the_newest_is_killed_the_one_before_goes_on(open_house):
    async with open_house() as house:
        spec = house.spec(house.module("lazy_one"))
        first = await house.ready(spec)
        await house.learned("lazy_one")
        os.kill(house.contexts.all[-1].pid, signal.SIGKILL)
        await house.until(lambda: house.names == ["context-1"])
        again = await house.ready(spec)
        assert again["parent"] == first["parent"]
        await house.learned("lazy_one")
        assert house.names == ["context-1", "context-1+2"]


async def test_when_the_one_before_is_killed_the_newest_goes_on(open_house):
    async with open_house() as house:
        spec = house.spec(house.module("lazy_one"))
        first = await house.ready(spec)
        await house.learned("lazy_one")
        os.kill(first["parent"], signal.SIGKILL)
        await house.until(lambda: house.names == ["context-1+1"])
        assert (await house.ready(spec))["there"] == ["lazy_one"]


async def test_all_are_let_go_after_the_last_worker_of_any(open_house):
    async with open_house(keep_s=0.05) as house:
        spec = house.spec(house.module("lazy_one"))
        await house.ready(spec)
        await house.learned("lazy_one")
        await asyncio.sleep(0.2)
        assert house.names == ["context-1", "context-1+1"]
        pids = [context.pid for context in house.contexts.all]
        await house.connections[0].stop(5.0)
        await house.until(lambda: not house.contexts.all)
        for pid in pids:
            await house.until(lambda pid=pid: not Path(f"/proc/{pid}/cmdline").exists() or _zombie(pid))


async def test_closing_while_a_copy_imports(open_house):
    async with open_house() as house:
        slow = house.module("lazy_slow", "import select, sys\nif len(sys.argv) == 2: select.select([], [], [], 60)")
        await house.ready(house.spec(slow))
        found = house.learner
        await house.until(lambda: found.copying is not None)
        async with asyncio.timeout(10):
            await house.close()
        assert found.gone


async def test_stats_tell_of_each(open_house):
    async with open_house() as house:
        spec = house.spec(house.module("lazy_one"))
        await house.ready(spec)
        await house.learned("lazy_one")
        old, new = await house.contexts.stats()
        assert (old.workers, new.workers, new.forks) == (1, 0, 0)
        assert old.idle_s is new.idle_s is None
        assert msgspec.to_builtins(new)["pss_bytes"] > 0


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
