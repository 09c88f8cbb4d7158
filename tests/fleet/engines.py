"""Small engines for the launchers' tests, loaded by path: `engines.py:Echo`."""

import asyncio
import ctypes
import os
import sys
import threading
from importlib.util import find_spec

import msgspec

from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish
from foreserve.errors import EngineStartError
from foreserve.runtime.leases import MEMORY


class Say(msgspec.Struct, frozen=True, kw_only=True):
    """A payload: say `words`, each after `step_s`; misbehave as `fault` says."""

    words: tuple[str, ...] = ()
    step_s: float = 0.0
    fault: str = ""
    data: bytes = b""


class Echo:
    """Continuous: says the words of its payload, one a chunk, then stops."""

    batching = "continuous"

    def __init__(self, slots: int = 8, start_error: str = "", start_s: float = 0.0, fact: str = ""):
        self.slots, self.start_error, self.start_s, self.fact = slots, start_error, start_s, fact
        self.running, self.cancelled, self.pulled = set(), set(), 0

    async def start(self):
        await asyncio.sleep(self.start_s)
        if self.start_error:
            raise EngineStartError(self.start_error)
        return EngineInfo(batching=self.batching, capacity={"slots": self.slots}, facts={"fact": self.fact})

    async def run(self, work, plan=None):
        say = msgspec.convert(work.payload, Say)
        self.running.add(work.id)
        try:
            if say.fault == "raise at once":
                raise ValueError("the first thing went wrong")
            for index, word in enumerate(say.words):
                await asyncio.sleep(say.step_s)
                if work.id in self.cancelled and say.fault != "deaf":
                    yield Chunk(id=work.id, index=index, attempt=work.attempt, finish=Finish(reason="cancelled"))
                    return
                if say.fault == "raise" and index == 1:
                    raise ValueError("it went wrong")
                if say.fault == "system exit":
                    sys.exit(5)
                if say.fault == "unsendable":
                    yield Chunk(id=work.id, index=index, data=object())
                    continue
                self.pulled += 1
                yield Chunk(id=work.id, index=index, attempt=work.attempt, data={"word": word, "plan": plan})
            if say.fault == "no finish":
                return
            if say.data:
                yield Chunk(id=work.id, index=len(say.words), attempt=work.attempt, data=say.data[::-1])
            finish = Finish(reason="stop", usage={"words": len(say.words), "pulled": self.pulled})
            yield Chunk(id=work.id, index=999, finish=finish)
            if say.fault == "goes on":
                for _ in range(3):
                    yield Chunk(id=work.id, index=0, data={"word": "late"}, finish=finish)
        finally:
            self.running.discard(work.id)
            self.cancelled.discard(work.id)

    async def run_batch(self, works, plan=None):
        says = {work.id: msgspec.convert(work.payload, Say) for work in works}
        live = {work.id: 0 for work in works}
        while live:
            await asyncio.sleep(max(says[request_id].step_s for request_id in live))
            step = []
            for request_id, at in list(live.items()):
                say = says[request_id]
                if say.fault == "raise" and at == 1:
                    raise ValueError("the batch went wrong")
                if request_id in self.cancelled:
                    finish = Finish(reason="cancelled")
                elif at == len(say.words):
                    finish = Finish(reason="stop", usage={"batch": len(works)})
                else:
                    step.append(Chunk(id=request_id, index=at, data={"word": say.words[at], "plan": plan}))
                    live[request_id] += 1
                    continue
                del live[request_id]
                if say.fault != "no finish":
                    step.append(Chunk(id=request_id, index=at, finish=finish))
            yield step

    async def cancel(self, request_id):
        if request_id in self.running or self.batching == "static":
            self.cancelled.add(request_id)

    async def load(self):
        return EngineLoad(running=len(self.running))

    async def close(self):
        self.cancelled.clear()


class StaticEcho(Echo):
    batching = "static"


class Growing(Echo):
    """Says what it is fed, until the last."""

    def __init__(self):
        super().__init__()
        self.fed = {}

    async def run(self, work, plan=None):
        queue = self.fed.setdefault(work.id, asyncio.Queue(100))
        index = 0
        while True:
            data, last = await queue.get()
            if data is not None:
                yield Chunk(id=work.id, index=index, data={"word": data})
                index += 1
            if last:
                yield Chunk(id=work.id, index=index, finish=Finish(reason="stop" if data is not None else "cancelled"))
                return

    async def feed(self, request_id, data, last):
        await asyncio.sleep(0.001 if data == "a" else 0)  # a slow first feed must not be overtaken
        self.fed[request_id].put_nowait((data, last))

    async def cancel(self, request_id):
        if request_id in self.fed:
            self.fed[request_id].put_nowait((None, True))


class LocksInterpreter(Echo):
    """Holds the interpreter's lock for `step_s` in one native call, as an engine's step does."""

    async def run(self, work, plan=None):
        say = msgspec.convert(work.payload, Say)
        self.running.add(work.id)
        for index, word in enumerate(say.words):
            await asyncio.sleep(0)
            if work.id in self.cancelled:
                yield Chunk(id=work.id, index=index, finish=Finish(reason="cancelled"))
                return
            ctypes.PyDLL(None).usleep(int(say.step_s * 1e6))
            yield Chunk(id=work.id, index=index, data={"word": word})
        yield Chunk(id=work.id, index=0, finish=Finish(reason="stop"))


class Fails(Echo):
    """Ends one answer, says that it has failed, and leaves others and a thread that never ends behind."""

    def __init__(self):
        super().__init__()
        self.broken = asyncio.Event()

    async def failed(self):
        await self.broken.wait()
        return "it has lost\nits means"

    async def run(self, work, plan=None):
        yield Chunk(id=work.id, index=0, data={"word": "before"})
        if msgspec.convert(work.payload, Say).fault != "break":
            await asyncio.Event().wait()
        threading.Thread(target=threading.Event().wait, args=(60,)).start()
        self.broken.set()
        yield Chunk(id=work.id, index=1, finish=Finish(reason="error", error="it broke"))


class Dies(Echo):
    """Prints and ends its process in the middle of an answer."""

    async def run(self, work, plan=None):
        yield Chunk(id=work.id, index=0, data={"word": "before"})
        await asyncio.sleep(0.05)
        print("these are my last words", flush=True)
        os._exit(9)


class Tells(Echo):
    """What the worker process sees of its surroundings."""

    async def start(self):
        modules = ("foreserve", "msgspec", "numpy", "pytest")
        return EngineInfo(
            batching="continuous",
            capacity={"slots": 1},
            facts={
                "executable": sys.executable,
                "finds": {name: find_spec(name) is not None for name in modules},
                "path": sys.path,
                "env": {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "OWN")},
                "nice": os.nice(0),
                "owner": os.environ.get(MEMORY),
                "session": os.getsid(0) == os.getpid(),
            },
        )


class NeedsMissing(Echo):
    async def start(self):
        import not_a_package_anywhere  # noqa: F401


not_callable = 3
