"""The images behind the entries of the table: loads them, gives their memory back, learns what they are."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from foreserve import clock
from foreserve.core import WeightsRef
from foreserve.errors import EngineStartError
from foreserve.runtime.memory_digests import Digests, Stat, sha256_key
from foreserve.runtime.memory_entry import Effect, Entry, State
from foreserve.runtime.memory_loader import Image, Loader
from foreserve.runtime.memory_messages import MOST_MARKS, SOURCE_CHARACTERS, Held, mark
from foreserve.runtime.memory_source import Source
from foreserve.runtime.memory_store import Kept, Store
from foreserve.runtime.memory_table import Table

log = logging.getLogger(__name__)

MOST_NAMES: Final = 4
"""Names of one image that are told of."""


class _Kept(Kept):
    """What is known of an entry: who asked last before it is loaded says where it comes from."""

    def __init__(self, ref: WeightsRef, python: str, stat: Stat | None) -> None:
        super().__init__()
        self.ref = ref
        self.python = python
        self.stat = stat  # of a file
        self.names: dict[str, None] = {}
        self.marks: dict[int, None] = {}
        self.image: Image | None = None
        self.learning: asyncio.Task[None] | None = None


class Images(Store[_Kept]):
    """Of the entries of `table`; `do(effects)` carries out all that follows from what is told to it.

    The digest of an image that is there is learned after `learn_after_s` seconds, when who waited for it is under way.
    """

    def __init__(
        self,
        table: Table,
        loader: Loader,
        digests: Digests,
        do: Callable[[Iterable[Effect]], None],
        learn_after_s: float,
    ) -> None:
        super().__init__(table, do)
        self._loader = loader
        self._digests = digests
        self._learn_after_s = learn_after_s
        self.loads = 0

    def close(self) -> None:
        """Stop everything and give all memory back."""
        super().close()
        for kept in self._kept.values():
            if kept.image is not None:
                os.close(kept.image.fd)
                kept.image = None
        self._loader.close()

    # --- what is known

    def name(self, entry: Entry, ref: WeightsRef, python: str, stat: Stat | None) -> None:
        """`entry` is asked for as `ref`."""
        kept = self._kept.setdefault(entry.number, _Kept(ref, python, stat))
        if entry.waits or entry.state is State.EVICTING:  # it is still to be loaded, and may be gone from elsewhere
            kept.ref, kept.python, kept.stat = ref, python, stat
        if len(kept.names) < MOST_NAMES:
            kept.names[ref.name] = None
        kept.marks = dict.fromkeys([*(each for each in kept.marks if each != mark(ref)), mark(ref)][-MOST_MARKS:])

    def find(self, entry: Entry) -> Image | None:
        """Its image, while it is there."""
        return self._kept[entry.number].image

    def current(self, entry: Entry) -> bool:
        """Whether the file that it was loaded from, if it was one, is still the same."""
        kept = self._kept[entry.number]
        return kept.image is None or kept.stat is None or Stat.of(kept.image.fd) == kept.stat

    def source(self, entry: Entry) -> Source:
        """What a copy is made of: it stands for the file as it was when it was loaded.

        Raises EngineStartError where there is none, or the file is another by now.
        """
        kept = self._kept[entry.number]
        if kept.image is None:
            raise EngineStartError("it is not in this machine's memory")
        if not self.current(entry):  # a copy of what the file is now would go by the name and digest of what it was
            raise EngineStartError("its file was changed after it was loaded; who starts anew gets what it is now")
        return Source(kept.image.fd, self.held(entry), kept.stat)

    def adopt(self, entry: Entry, image: Image) -> None:
        """This is its image, which somebody else has loaded."""
        self._kept[entry.number].image = image
        self._identify(entry)

    def held(self, entry: Entry) -> Held:
        """What there is to tell of it."""
        kept = self._kept[entry.number]
        return Held(
            names=tuple(kept.names),
            source=kept.ref.source[-SOURCE_CHARACTERS:],
            kind=kept.ref.kind,
            state="waiting" if entry.waits else entry.state.value,
            bytes=entry.bytes,
            references=len(entry.leases),
            restore_s=entry.restore_s,
            bytes_read=entry.bytes_read,
            hits=entry.hits,
            sha256=kept.image.sha256 if kept.image else None,
            marks=tuple(kept.marks),
        )

    # --- what is decided

    async def _load(self, entry: Entry, kept: _Kept) -> None:
        async def room(size: int) -> None:
            try:
                await self._room(entry, kept, size)
            except EngineStartError as error:
                raise EngineStartError(f"{kept.ref.source}: {error}") from None

        known = self._digests.find(kept.stat) if kept.stat else None
        self.loads += 1
        try:
            image = await self._loader.load(kept.ref, kept.python, room, known)
            if kept.stat is not None and Stat.of(image.fd) != kept.stat:
                os.close(image.fd)
                raise EngineStartError(f"{kept.ref.source} has changed since it was asked for")
        except Exception as error:
            if not isinstance(error, EngineStartError):
                log.exception("%s could not be loaded", kept.ref.source)
                error = EngineStartError(f"{kept.ref.source}: {type(error).__name__}: {error}")
            self._do(self.table.failed(entry, str(error), clock.now()))
            return
        kept.image = image
        log.info("%s: %d bytes in %.3f s", kept.ref.source, image.size, image.seconds)
        self._do(self.table.loaded(entry, image.size, image.seconds, image.bytes_read, clock.now()))
        if entry.state is State.READY:
            self._identify(entry)

    async def _free(self, kept: _Kept) -> None:
        if kept.learning is not None:
            kept.learning.cancel()
        image, kept.image = kept.image, None
        if image is not None:
            self.evictions += 1
            log.info("%s: %d bytes are given back", kept.ref.source, image.size)
            await clock.offload(lambda: _free(image.fd))

    # --- what it is

    def _identify(self, entry: Entry) -> None:
        """Let others who ask for the same content find it, from now on or soon."""
        kept = self._kept[entry.number]
        if kept.image is not None and kept.image.sha256 is not None:
            self._learn(entry, kept, kept.image.sha256)
        else:
            kept.learning = self._spawn(self._digest(entry, kept))

    async def _digest(self, entry: Entry, kept: _Kept) -> None:
        await asyncio.sleep(self._learn_after_s)
        if entry.state is not State.READY or kept.image is None:
            return
        fd = os.dup(kept.image.fd)
        try:
            sha256 = await self._loader.digest(fd)
            if kept.stat is None or Stat.of(fd) == kept.stat:
                self._learn(entry, kept, sha256)
        except (OSError, EngineStartError) as error:
            log.warning("the digest of %s could not be learned: %s", kept.ref.source, error)
        finally:
            os.close(fd)

    def _learn(self, entry: Entry, kept: _Kept, sha256: str) -> None:
        if kept.stat is not None and self._digests.find(kept.stat) != sha256:
            self._digests.learn(kept.stat, sha256)
        if kept.image is not None:
            kept.image = kept.image._replace(sha256=sha256)
        self.table.learn(entry, sha256_key(sha256))


def _free(fd: int) -> None:
    """Memory of ours goes with its last descriptor; pages of a file stay the kernel's unless it is told."""
    with suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
