"""A text that is still being written, and the reader that cuts it into pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator

from foreserve.pipelines.channel import Channel
from foreserve.pipelines.log import Log, Reader, taken
from foreserve.pipelines.splitting import Parser, Piece, Splitter


class Text(Log):
    """Text that may still grow. `await text` is all of it as `str`; `async for part in text` reads it as it comes.

    As an annotation it says that a stage takes or makes live text; one that takes `str` is given the whole.
    """

    __slots__ = ()

    @classmethod
    def of(cls, text: str) -> Text:
        """One that is whole."""
        made = cls()
        made.append(text)
        made.close()
        return made

    # --- the writer's side

    def append(self, part: str, number: int | None = None, attempt: int | None = None) -> None:
        """The next part. With its `number`, from 0, a part that has come already is left out; so is another attempt's.

        Raises ValueError for a part that is ahead of its turn, TooMany.
        """
        if (attempt is not None and attempt != self.attempt) or not part:
            return
        if number is not None:
            if number < len(self.items):
                return
            if number > len(self.items):
                raise ValueError(f"part {number} of a text came when {len(self.items)} were here")
        self._check_room()
        self.items.append(part)
        for reader in self.readers:
            reader.news()

    def close(self) -> None:
        """It is whole."""
        if not self.complete:
            self._finish()

    # --- the readers' side

    def whole(self) -> str:
        """What is here."""
        return "".join(self.items)

    def __await__(self) -> Generator[asyncio.Future[None], None, str]:
        if not self.complete:
            done = asyncio.get_running_loop().create_future()

            def tell() -> None:
                if not done.done():
                    done.set_result(None)

            self.when_complete(tell)
            try:
                yield from done
            finally:
                self.forget(tell)
        return self.whole()

    def __aiter__(self) -> AsyncIterator[str]:
        from foreserve.pipelines.stream import Stream

        return Stream(self).__aiter__()


class Cutter(Reader):
    """Reads a text and writes its pieces, live texts themselves, to a channel."""

    __slots__ = ("_growing", "_out", "_parser", "_splitter", "_text")

    def __init__(self, text: Text, splitter: Splitter, out: Channel) -> None:
        super().__init__()
        self._text = text
        self._splitter = splitter
        self._out = out
        self._parser: Parser = splitter.parser()
        self._growing: Text | None = None

    def start(self) -> None:
        """Read from the beginning on."""
        self._text.attach(self)
        self.news()

    def cancel(self) -> None:
        """See `Part`."""
        self._text.detach(self)

    def news(self) -> None:
        """See `Reader`. A text in the making cannot be paused, so its pieces are made as it comes."""
        self.started = True
        for part in taken(self, self._text):
            self._hand_on(self._parser.feed(part))
        if self._text.complete:
            self._hand_on(self._parser.close())
            self._out.end(self._parser.count)

    def retracted(self) -> None:
        """See `Reader`."""
        self._parser = self._splitter.parser()
        self._growing = None
        self._out.retract()

    def _hand_on(self, pieces: list[Piece]) -> None:
        for index, part, last in pieces:
            if self._growing is not None:
                growing = self._growing
                self._growing = None if last else growing
                growing.append(part)
                if last:
                    growing.close()
            elif last:
                self._out.put(index, Text.of(part))
            else:
                self._growing = Text()
                self._growing.append(part)
                self._out.put(index, self._growing)
