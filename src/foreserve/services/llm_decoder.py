"""From an engine's tokens to the events a caller reads: text as it becomes certain, then why it ended.

Stop strings are matched here, for all engines alike. Text that may turn out to be the beginning of a stop string is
held back until that is known, so no part of a stop string is ever delivered.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from foreserve.core import Chunk, Work
from foreserve.engines.generation import Generate, Tokens
from foreserve.ports import Decoded, Resumed
from foreserve.services.llm_text import Text


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One output token: its text by itself, its log-probability, and where its text begins in the answer.

    `top` has the likeliest candidates for its place, best first, where they were asked for.
    """

    token: str
    logprob: float
    offset: int
    top: tuple[tuple[str, float], ...] = ()


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    """The next part of the answer's text, never empty unless it carries log-probabilities alone."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """The last event of an answer that is complete. Tokens are counted as the model made them."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0


Event = TextDelta | Ended


class TextDecoder:
    """One answer, of one attempt or of several where it is resumed. Raises nothing that a token could cause."""

    def __init__(self, work: Work, text: Text, *, resumes: bool = False) -> None:
        """`resumes`: the engine goes on with a seed's draws and with what penalties count."""
        self._resumes = resumes
        asked = work.payload if isinstance(work.payload, Generate) else msgspec.convert(work.payload, Generate)
        self._asked = asked
        self._prompt_tokens = len(asked.prompt)
        self._stop_tokens = frozenset(asked.stop_tokens)
        self._stops = StopMatcher(asked.stop) if asked.stop else None
        self._logprobs_wanted = asked.logprobs
        self._text = text
        self._words = text.detokenizer()
        self._ids: list[int] = []
        self._output_tokens = 0
        self._before = 0  # of them, those of attempts before the present one
        self._made = 0  # characters detokenised so far: where the next token's text begins
        self._given = 0  # characters delivered
        self._logprobs: list[TokenLogprob] = []  # of tokens whose text is not delivered yet
        self._over = False

    def feed(self, chunk: Chunk) -> Decoded:
        if self._over:
            return Decoded()
        text = self._detokenise(chunk.data) if chunk.data is not None else ""
        finish = chunk.finish
        # What is held back is given out at the end of the answer alone: after a failure it may go on.
        whole = finish is not None and finish.reason in ("stop", "length")
        if whole:
            text += self._words.flush()
        hit = False
        if self._stops is not None:
            text, hit = self._stops.feed(text, last=whole)
        events: list[Event] = []
        if delta := self._delta(text, all_logprobs=whole and not hit):
            events.append(delta)
        if hit or whole:
            self._over = True
            usage = finish.usage if finish is not None else {}
            self._output_tokens = max(self._output_tokens, self._before + int(usage.get("output_tokens", 0)))
            reason: Literal["stop", "length"] = "stop" if hit or (finish and finish.reason == "stop") else "length"
            events.append(
                Ended(
                    reason=reason,
                    prompt_tokens=self._prompt_tokens,
                    output_tokens=self._output_tokens,
                    cached_tokens=min(int(usage.get("cached_tokens", 0)), self._prompt_tokens),
                )
            )
        return Decoded(events=events, enough=hit)

    def resume(self) -> Resumed | None:
        """See `Decoder`: the prompt, then, is what was asked and what came of it.

        Greedy answers go on as they would have, unseeded ones as they could have. A seed's draws and what penalties
        count begin anew but where the engine `resumes` them, a schema's state always: such answers are not continued.
        """
        asked, left = self._asked, self._asked.max_tokens - len(self._ids)
        drawn = asked.temperature > 0 and asked.seed is not None
        penalised = asked.frequency_penalty != 0 or asked.presence_penalty != 0
        if left < 1 or ((drawn or penalised) and not self._resumes) or asked.json_schema is not None:
            return None
        self._before = len(self._ids)
        payload = msgspec.structs.replace(
            asked, prompt=[*asked.prompt, *self._ids], max_tokens=left, continued=asked.continued + len(self._ids)
        )
        return Resumed(payload=payload, steps=len(self._ids))

    def usage(self) -> dict[str, float]:
        """See `Decoder`: what is counted here stands when no engine's figures come, as at a stop string."""
        return {"prompt_tokens": float(self._prompt_tokens), "output_tokens": float(self._output_tokens)}

    def _detokenise(self, data: Any) -> str:
        """Text of a chunk's tokens. A stop token counts as output but has no text."""
        tokens = data if isinstance(data, Tokens) else msgspec.convert(data, Tokens)
        self._ids += tokens.ids
        self._output_tokens = len(self._ids)
        if self._logprobs_wanted is None or tokens.logprobs is None:
            ids = tokens.ids
            if self._stop_tokens and not self._stop_tokens.isdisjoint(ids):
                ids = [token for token in ids if token not in self._stop_tokens]
            text = self._words.feed(ids) if ids else ""
            self._made += len(text)
            return text
        parts: list[str] = []
        tops = tokens.top or [[] for _ in tokens.ids]
        for token, logprob, top in zip(tokens.ids, tokens.logprobs, tops, strict=True):
            if token in self._stop_tokens:
                continue
            candidates = tuple((self._text.decode([id_]), value) for id_, value in top[: self._logprobs_wanted])
            entry = TokenLogprob(token=self._text.decode([token]), logprob=logprob, offset=self._made, top=candidates)
            self._logprobs.append(entry)
            parts.append(self._words.feed([token]))
            self._made += len(parts[-1])
        return "".join(parts)

    def _delta(self, text: str, all_logprobs: bool) -> TextDelta | None:
        """`text` with the log-probabilities of the tokens that begin within it."""
        self._given += len(text)
        ready = 0
        while ready < len(self._logprobs) and (all_logprobs or self._logprobs[ready].offset < self._given):
            ready += 1
        if not text and not ready:
            return None
        logprobs, self._logprobs = tuple(self._logprobs[:ready]), self._logprobs[ready:]
        return TextDelta(text=text, logprobs=logprobs)


class StopMatcher:
    """Finds the first of some strings to be complete in a text that comes in parts, and cuts the text before it."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops))
        self._firsts = frozenset(stop[0] for stop in stops)
        self._held = ""

    def feed(self, text: str, last: bool = False) -> tuple[str, bool]:
        """What of the text so far is certain to come before any stop string, and whether one was found.

        `last` says that nothing follows, so nothing is held back.
        """
        text = self._held + text
        self._held = ""
        # The one that is complete first counts, whatever the parts the text came in.
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            return text[: min(found)[1]], True
        if last:
            return text, False
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._firsts and any(stop.startswith(text[start:]) for stop in self._stops):
                self._held = text[start:]
                return text[:start], False
        return text, False
