"""The read-only weights of this process: asked for before they are needed, mapped when they are there.

`begin` asks for what an engine has declared, at once and in the background; `get(name).wait()` is where its first use
meets it. Under a launcher of processes the memory owner of this machine loads each content once and hands out a
descriptor (`FORESERVE_MEMORY` is the path of its socket); without one this process opens the sources itself.

Nothing is given back by hand: the connection to the owner is the lease, so a process that ends in whatever way returns
all it had.
"""

from __future__ import annotations

import contextvars
import mmap
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from foreserve.core import WeightsRef
from foreserve.errors import EngineStartError
from foreserve.runtime.placed import Placed
from foreserve.runtime.safetensors import Layout, NotSafetensors, parse

if TYPE_CHECKING:
    from foreserve.runtime.memory_client import Client

MEMORY: Final = "FORESERVE_MEMORY"
"""The environment variable with the path of the owner's socket."""


class WeightsError(EngineStartError):
    """Weights cannot be had; the message names them, their source and what is wrong."""


class Mapped:
    """A safetensors image, mapped read-only: a write to its memory ends the process, and changes it for nobody.

    `layout` has dtype, shape and place of each tensor, `image` all bytes (a read-only memoryview), `nbytes` their
    number, `sha256` their digest where it is known. The mapping lives as long as anything that looks into it.
    """

    def __init__(self, name: str, fd: int, where: str, sha256: str | None = None) -> None:
        """Maps `fd`, which stays the caller's. Raises WeightsError; NotSafetensors when it is no such image."""
        size = os.fstat(fd).st_size
        if not size:
            raise NotSafetensors(f"{where} is no safetensors file: it is empty")
        self.name = name
        self.nbytes = size
        self.sha256 = sha256
        try:
            self.image = memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise WeightsError(f"{where} cannot be mapped: {error}") from error
        self.layout: Layout = parse(self.image, where)

    @property
    def data_begin(self) -> int:
        """Where the data of the first tensor begins in the image."""
        return min((tensor.begin for tensor in self.layout.values()), default=self.nbytes)

    def data(self, tensor: str) -> memoryview:
        """The bytes of one tensor. Raises KeyError."""
        found = self.layout[tensor]
        return self.image[found.begin : found.end]


class Pending:
    """Weights that are on their way."""

    def __init__(self, ref: WeightsRef) -> None:
        self.ref = ref
        self.waits = ""
        """Why they are not being loaded, in words, where that was told."""
        self.placed = None if ref.device is None else Placed(ref.device)
        """Their copy on a device, where they are wanted on one."""
        self._known = threading.Event()
        self._mapped: Mapped | None = None
        self._error: str | None = None

    @property
    def done(self) -> bool:
        """Whether `wait` would return, or raise, at once."""
        return self._known.is_set()

    def wait(self, timeout_s: float | None = None) -> Mapped:
        """The weights, once they are there. Blocks; may be called often and by many threads.

        Raises WeightsError with the reason when they cannot be had, or are not there after `timeout_s` seconds.
        """
        if not self._known.wait(timeout_s):
            words = f"weights {self.ref.name!r} ({self.ref.source}) were not there after {timeout_s:g} s"
            raise WeightsError(f"{words}: {self.waits}" if self.waits else words)
        if self._mapped is None:
            raise WeightsError(f"weights {self.ref.name!r}: {self._error}")
        return self._mapped

    def give(self, mapped: Mapped) -> None:
        """They are there."""
        self._mapped = mapped
        self._known.set()

    def fail(self, reason: str) -> None:
        """They cannot be had."""
        self._error = reason
        self._known.set()
        if self.placed is not None:
            self.placed.fail(reason)


def resolved(ref: WeightsRef) -> WeightsRef:
    """The same for a process with another working folder."""
    path, colon, attribute = ref.source.rpartition(":")
    if ref.kind == "file":
        source = os.path.abspath(os.path.expanduser(ref.source))
    elif ref.kind == "loader" and path.endswith(".py"):
        source = os.path.abspath(os.path.expanduser(path)) + colon + attribute
    else:
        return ref
    return msgspec.structs.replace(ref, source=source)


_lock = threading.Lock()
_pending: dict[str, Pending] = {}
"""Of the whole process, by name."""

_own: contextvars.ContextVar[dict[str, Pending] | None] = contextvars.ContextVar("foreserve_weights", default=None)
"""Of one engine, where several live in a process: what a name means to one is nothing to the others."""
_client: Client | None = None


def begin(refs: Sequence[WeightsRef]) -> None:
    """Start to get these; returns at once. What is on its way or there already stays; a failure is tried again.

    A name that meant something else before means this from now on, within the same `scope`.
    """
    own = _own.get()
    fresh = []
    with _lock:
        for ref in refs:
            pending = _held(ref, _pending if own is None else own) or _held(ref, _pending)
            if pending is None:
                pending = Pending(ref)
                fresh.append(pending)
            _pending[ref.name] = pending
            if own is not None:
                own[ref.name] = pending
    if fresh:
        _getter()(fresh)


def scope() -> contextvars.Context:
    """A copy of the current context in which names mean what `begin` is told of there."""
    context = contextvars.copy_context()
    context.run(_own.set, {})
    return context


def get(name: str) -> Pending:
    """The weights called `name`, which `begin` was told of in this `scope`; outside of any, in the last one.

    Raises WeightsError naming those there are.
    """
    own = _own.get()
    with _lock:
        table = _pending if own is None else own
        pending, known = table.get(name), list(table)
    if pending is None:
        raise WeightsError(f"no weights are called {name!r}; declared: {', '.join(known) or 'none'}")
    return pending


def rest() -> list[Placed]:
    """Give the copies on devices back that were begun in this `scope`; those that were. Blocks while a device works.

    Nobody may look at them until each is awake again.
    """
    own = _own.get()
    with _lock:
        placed = [each.placed for each in (_pending if own is None else own).values() if each.placed is not None]
    return [each for each in dict.fromkeys(placed) if each.rest()]


def _forked() -> None:
    """A child has what was mapped, and its parent's leases while it lives; the parent's thread it has not."""
    global _client, _lock
    _client, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forked)


def _held(ref: WeightsRef, table: Mapping[str, Pending]) -> Pending | None:
    known = table.get(ref.name)
    return known if known is not None and known.ref == ref and known._error is None else None


def _getter() -> Callable[[Sequence[Pending]], None]:
    """How this process gets weights: from the owner it was told of, if any."""
    global _client
    path = os.environ.get(MEMORY)
    if not path:
        return _get_here
    from foreserve.runtime.memory_client import Client

    with _lock:
        if _client is None or _client.path != path:
            _client = Client(path, _get_here)
        return _client.want


def _get_here(wanted: Sequence[Pending]) -> None:
    """Without an owner, in a thread of this process."""

    def run() -> None:
        for pending in wanted:
            try:
                pending.give(_mapped_here(pending.ref))
                if pending.placed is not None:
                    pending.placed.fail("this process has no memory owner")
            except EngineStartError as error:
                pending.fail(str(error))
            except Exception as error:
                pending.fail(f"{pending.ref.source}: {type(error).__name__}: {error}")

    threading.Thread(target=run, name="foreserve-weights", daemon=True).start()


def _mapped_here(ref: WeightsRef) -> Mapped:
    """A file is mapped and read as it is needed; anything else, and what has to be checked, is loaded first."""
    import asyncio

    from foreserve.runtime.memory_loader import Loader, open_file

    async def no_bound(size: int) -> None:
        pass

    async def load() -> tuple[int, str | None]:
        loader = Loader(readers=1, chunk_bytes=2**24)
        image = await loader.load(ref, sys.executable, no_bound)
        loader.close()
        return image.fd, image.sha256

    ref = resolved(ref)
    if ref.kind == "uri":
        raise WeightsError(f"weights from {ref.source} are fetched for worker processes alone, by their memory owner")
    if ref.kind == "file" and ref.sha256 is None:
        fd, sha256 = open_file(ref.source), None
    else:
        fd, sha256 = asyncio.run(load())
    try:
        return Mapped(ref.name, fd, ref.source, sha256)
    finally:
        os.close(fd)
