"""A running OpenAI-compatible server as a probe: seen from outside, by the times at which its events come."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import msgspec

from foreserve.clock import precise
from foreserve.core import Finish
from foreserve.errors import ConfigError
from foreserve.loadgen.arrivals import Generator
from foreserve.loadgen.client import Client, ClientOptions, base_url
from foreserve.loadgen.records import Ending, Recording
from foreserve.simulation.probe import Asked, EngineLost, Probe, Wanted

VOCABULARY: Final = 20_000
_SPECIAL: Final = 100
"""Token ids that prompts are drawn from: models have more, and the lowest ones are special in many."""

MOST_SHORT: Final = 2
SHORT_SHARE: Final = 0.05
"""So many answers, and this share of all, may end early."""

_WORDS: Final = ("one", "two", "red", "sun", "tree", "house", "river", "light", "stone", "bird", "long", "cold")


class RemoteProbe(Probe):
    """A context over one server. `as_ids`: prompts are sent as token ids, else as that many short words.

    `forced`: the server takes `ignore_eos`, so that answers have the length that is asked for. Both are found out by
    `prepare`, which raises ConfigError for a server that cannot be measured. `short` counts answers that ended early;
    when they are many, waiting for any answer raises ConfigError: how long one takes then tells nothing of steps.
    """

    def __init__(self, url: str, model: str, headers: Mapping[str, str], rng: Generator, timeout_s: float) -> None:
        super().__init__(rng, VOCABULARY)
        self.as_ids = True
        self.forced = True
        self.short = 0
        self._ended = 0
        self.merged = False
        """Whether events have held several tokens."""
        self._model = model
        options = ClientOptions(
            url=url, model=model, endpoint="completions", headers=dict(headers), timeout_s=timeout_s
        )
        self._client = Client(options, rng)
        self._per_word = 1.0
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._client.__aexit__(kind, error, trace)

    async def prepare(self) -> None:
        """Find out how this server wants to be asked."""
        refused = ""
        for self.as_ids, self.forced in ((True, True), (False, True), (True, False), (False, False)):
            (asked,) = self.send((8, 4))
            finish = await asked.done
            if finish.reason not in ("rejected", "error"):
                if not finish.usage.get("prompt_tokens"):
                    raise ConfigError(f"{self._client.options.url}: the server tells no `usage` in its streams")
                if not self.as_ids:
                    await self._weigh_words()
                return
            refused = finish.error or refused
        raise ConfigError(f"{self._client.options.url}: {refused}")

    async def _weigh_words(self) -> None:
        """How many tokens a word has, and what the server adds to every prompt is not counted."""
        told = []
        for words in (16, 80):
            (asked,) = self.send((self.prompt(words), 1))
            told.append((await asked.done).usage.get("prompt_tokens", 0.0))
        self._per_word = max(1.0, (told[1] - told[0]) / 64)

    def prompt(self, tokens: int) -> list[int]:
        """See `Probe`; about so many tokens, where they are words."""
        count = max(1, round(tokens / self._per_word))
        drawn: list[int] = self._rng.integers(_SPECIAL, self._vocabulary, count).tolist()
        return drawn

    def send(self, *wanted: Wanted) -> list[Asked]:
        """See `Probe`."""
        found = []
        for prompt, most in wanted:
            ids = self.prompt(prompt) if isinstance(prompt, int) else prompt
            asked = Asked(self._name(), round(len(ids) * self._per_word), most, precise())
            task = asyncio.get_running_loop().create_task(self._run(asked, self._body(ids, most)))
            self._tasks[asked.id] = task
            task.add_done_callback(lambda _, id=asked.id: self._tasks.pop(id, None))  # type: ignore[misc]
            found.append(asked)
        return found

    def _body(self, ids: Sequence[int], most: int) -> bytes:
        prompt: Any = list(ids) if self.as_ids else " ".join(_WORDS[id % len(_WORDS)] for id in ids)
        fields: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": most,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.forced:
            fields["ignore_eos"] = True
        return msgspec.json.encode(fields)

    async def _run(self, asked: Asked, body: bytes) -> None:
        recording = _Watched(asked, self._news)
        finish = Finish(reason="cancelled")
        try:
            ending = await self._client.send(body, recording, 0.0)
            finish = self._finish(asked, recording, ending)
        finally:
            asked.over(precise(), finish)
            self._news.set()

    def _finish(self, asked: Asked, recording: Recording, ending: Ending) -> Finish:
        if ending is not Ending.DONE:
            return Finish(reason="error", error=f"{ending}: {recording.status or ''} {recording.error[:300]}".strip())
        if not asked.times:  # tokens without text have no event of their own
            asked.came(1, precise())
        tokens = recording.output_tokens or len(asked.times)
        self._ended += 1
        self.short += tokens < asked.most
        self.merged |= len(asked.times) < 0.8 * tokens
        return Finish(reason="stop", usage={"prompt_tokens": float(recording.prompt_tokens or 0)})

    async def ends(self, asked: Sequence[Asked]) -> None:
        """See `Probe`."""
        await super().ends(asked)
        self._long_enough()

    async def more(self, asked: Asked, tokens: int) -> bool:
        """See `Probe`."""
        came = await super().more(asked, tokens)
        self._long_enough()
        return came

    def _long_enough(self) -> None:
        if self.short > max(MOST_SHORT, SHORT_SHARE * self._ended):
            does = "does not heed" if self.forced else "does not take"
            raise ConfigError(
                f"{self._client.options.url}: {self.short} of {self._ended} answers were shorter than asked for, and "
                f"the server {does} `ignore_eos`, so its steps cannot be measured; let it ignore the end of a text "
                f"(llama.cpp: --ignore-eos), or measure a model on it that writes on"
            )

    async def stop(self, asked: Sequence[Asked]) -> None:
        """See `Probe`. Their connections are closed."""
        for each in asked:
            if (task := self._tasks.get(each.id)) is not None:
                task.cancel()
        await asyncio.gather(*(each.done for each in asked))


class _Watched(Recording):
    """Tells each event as it comes."""

    def __init__(self, asked: Asked, news: asyncio.Event) -> None:
        super().__init__(0, 0.0)
        self._asked = asked
        self._news = news

    def output(self, at: float) -> None:
        """See `Recording`."""
        super().output(at)
        self._asked.came(1, at)
        self._news.set()


async def context_told(url: str, model: str, headers: Mapping[str, str], limit_s: float = 10.0) -> int | None:
    """The model's context as its server lists it (`max_model_len`, as vLLM and we do); `None` where it does not."""
    timeout = aiohttp.ClientTimeout(total=limit_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=dict(headers)) as session,
            session.get(f"{base_url(url)}/models") as response,
        ):
            listed = msgspec.json.decode(await response.read())["data"]
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise EngineLost(f"{base_url(url)}/models: {type(error).__name__}: {error}") from None
    told = next((each.get("max_model_len") for each in listed if each.get("id") == model), None)
    return int(told) if isinstance(told, int) else None
