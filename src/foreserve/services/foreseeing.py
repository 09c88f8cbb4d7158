"""What a language-model service foresees of each request, and how it learns from how they end.

`about` is asked when a request has come, `price` when it is submitted, `settled` when it has ended.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from foreserve.clock import offload, precise, wall
from foreserve.core import Forecast, Length, Outcome, OutcomeKind, Price, Ramp
from foreserve.foresight.length import Asked, Ended
from foreserve.foresight.length_features import Features, featurise
from foreserve.foresight.length_history import History
from foreserve.foresight.length_predictor import Predictor
from foreserve.foresight.service_time import PaceState, RequestTime
from foreserve.samples import Keep, MemorySamples, Sample, Samples, SampleStore
from foreserve.services.learning import Learned, Learner
from foreserve.services.meanings import Given, Meanings
from foreserve.services.tiers import Choice, choose
from foreserve.services.training import Tier, trains
from foreserve.settings import ForesightSettings

log = logging.getLogger(__name__)

UNKNOWN_TOKENS: Final = 1024
"""The most room that is kept for an answer of which nothing is known: few come near their limit, which is the whole
context where a request names none. One that outgrows this makes a full engine preempt and recompute, which loses
nothing."""

MOST_PENDING: Final = 65_536
NOTE_EVERY: Final = 100
"""Answers after which what was learned of times is written down."""

Training = Literal["taken", "refused", "failed"]


class Foreseen(msgspec.Struct, frozen=True, eq=False):
    """What is known of a request before it is priced: lengths in tokens, and what was predicted from."""

    prompt_tokens: int
    most: int
    length: Length
    features: Features | None = None


class ForesightStatus(msgspec.Struct, frozen=True, kw_only=True):
    """For people and metrics: the tier in use and why, the models in place, what was learned from."""

    tier: str
    why: str
    models: dict[str, int]
    answers: int
    pending: int
    without_meaning: int


class Foreseer:
    """Of one service. Until it is started nothing is known, and every answer is taken to reach its limit.

    `predicted` hears the seconds that each prediction took, `trained` what became of each training and its seconds.
    """

    def __init__(self, settings: ForesightSettings) -> None:
        self.settings = settings
        self.predicted: list[Callable[[float], None]] = []
        self.trained: list[Callable[[Training, float], None]] = []
        self.choice = Choice(tier="histogram", why="not started yet")
        self.time = RequestTime()
        self._service = ""
        self._history = History()
        self._predictors: dict[Tier, Predictor] = {}
        self._meanings: Meanings | None = None
        self._samples: Samples | None = None
        self._learner: Learner | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._pending: OrderedDict[str, Foreseen] = OrderedDict()
        self._answers = 0

    # --- it starts and ends

    async def start(self, service: str, store: SampleStore | None, folder: Path | None) -> None:
        """Take up what the service has learned before. Without `store` and `folder` nothing outlives `stop`."""
        settings = self.settings
        self._service = service
        self.choice, encoder = await offload(lambda: choose(settings.predictor))
        log.info("%s: answer lengths are foreseen by the %s tier: %s", service, self.choice.tier, self.choice.why)
        if settings.predictor == "off":
            return
        tiers: tuple[Tier, ...] = ("fast", "full") if encoder is not None else ("fast",)
        self._predictors = {tier: Predictor(history=self._history, encoder=encoder) for tier in tiers}
        self._meanings = None if encoder is None else Meanings(encoder)
        keep = {service: Keep(rows=settings.keep_rows, days=settings.keep_days)}
        samples: Samples = MemorySamples(keep) if store is None else store
        self._samples = samples
        noted = await offload(lambda: samples.noted(service))
        self.time = _time(noted)
        if folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="foreserve-learning-")
            folder = Path(self._folder.name)
        tiers = tiers if trains(settings) else ()
        self._learner = Learner(service, settings, samples, folder, tiers, self._install, self._trained)
        await self._learner.start()

    async def stop(self) -> None:
        """End what runs beside the loop. Idempotent."""
        if self._learner is not None:
            await self._learner.stop()
        if self._meanings is not None:
            self._meanings.close()
        self._note()
        if self._folder is not None:
            self._folder.cleanup()

    def _install(self, learned: Learned) -> None:
        """Called on the loop, so that a prediction sees all of it or nothing."""
        if learned.history is not None:
            self._history = learned.history
        for tier, predictor in self._predictors.items():
            predictor.history = self._history
            predictor.swap(learned.models.get(tier))

    def _trained(self, outcome: Training, seconds: float) -> None:
        for tell in self.trained:
            tell(outcome, seconds)

    def status(self) -> ForesightStatus:
        """A snapshot."""
        models = {tier: predictor.model for tier, predictor in self._predictors.items()}
        return ForesightStatus(
            tier=self.choice.tier,
            why=self.choice.why,
            models={tier: model.about.samples for tier, model in models.items() if model is not None},
            answers=self._answers,
            pending=len(self._pending),
            without_meaning=0 if self._meanings is None else self._meanings.missed,
        )

    # --- the path of a request

    async def about(self, batch: Sequence[Asked]) -> list[Foreseen]:
        """What is foreseen of these, in order, for `Request.about`. Waits milliseconds at most, and never fails."""
        if not self._predictors:
            return [_limit(asked) for asked in batch]
        meanings = None if self._meanings is None else await self._meanings.of(batch)
        began = precise()
        try:
            encoder = None if meanings is None else Given(meanings)
            features = featurise(batch, encoder, self._history)
            lengths = self._predict(features)
        except Exception:
            # A prediction is worth less than the answer.
            log.exception("%s: nothing could be foreseen of a request", self._service)
            return [_limit(asked) for asked in batch]
        seconds = (precise() - began) / len(batch)
        for tell in self.predicted:
            tell(seconds)
        return [
            Foreseen(asked.prompt_tokens, asked.most, length, known)
            for asked, length, known in zip(batch, lengths, features, strict=True)
        ]

    def _predict(self, features: Sequence[Features]) -> list[Length]:
        """By the best model that can read these; by histograms where there is none."""
        full = self._predictors.get("full")
        if full is not None and full.model is not None and all(one.meaning is not None for one in features):
            return full.predict_features(features)
        fast = self._predictors["fast"]
        if fast.model is None:
            return self._history.predict(features)
        return fast.predict_features(features)

    def price(self, request_id: str, about: object, cost: dict[str, float], *, ramps: bool) -> Price:
        """`cost` with room for the answer, and what is foreseen. `ramps`: its replica can look ahead.

        `about` is what `about` has given for this request; without it the price is the cost alone.
        """
        if not isinstance(about, Foreseen):
            return Price(cost=cost)
        self._pending[request_id] = about
        while len(self._pending) > MOST_PENDING:
            self._pending.popitem(last=False)
        length, prompt = about.length, about.prompt_tokens
        forecast = Forecast(
            input_tokens=prompt,
            output=length,
            most_tokens=about.most,
            seconds=self.time.seconds(prompt, length.mean),
            least_seconds=self.time.least_seconds(_few(length)),
        )
        worst = self.settings.kv == "worst_case"
        steps = about.most if worst else _room(length)
        cost = {**cost, "kv_tokens": float(prompt + steps)}
        ramp = Ramp(resource="kv_tokens", base=prompt, steps=steps, most=about.most) if ramps and not worst else None
        return Price(cost=cost, forecast=forecast, ramp=ramp)

    def settled(self, outcome: Outcome) -> None:
        """Learn how long an answer was and how long it took. What had not begun teaches nothing."""
        about = self._pending.pop(outcome.id, None)
        if about is None or outcome.first is None or not self._predictors:
            return
        tokens = int(outcome.usage.get("output_tokens", 0.0))
        if tokens < 1:
            return
        done = outcome.kind is OutcomeKind.DONE
        # Who left or was too late would have had at least so much.
        ended = Ended(tokens=tokens, censored=not done or outcome.finish == "length")
        self._answers += 1
        if about.features is not None:
            self._learn(about.features, ended, about.length, outcome.tenant)
        if done and outcome.started is not None:
            prompt = int(outcome.usage.get("prompt_tokens", about.prompt_tokens))
            self.time.learn(prompt, tokens, outcome.ended - outcome.started)
        if self._answers % NOTE_EVERY == 0:
            self._note()

    def _learn(self, features: Features, ended: Ended, predicted: Length, tenant: str) -> None:
        tier: Tier = "full" if predicted.source == "full" else "fast"
        self._predictors.get(tier, self._predictors["fast"]).learn_features(features, ended, predicted)
        if self._samples is None or self._learner is None:
            return
        row = Sample(
            service=self._service,
            tenant=tenant,
            at=wall(),
            features=features.to_bytes(),
            tokens=ended.tokens,
            censored=ended.censored,
        )
        self._samples.record(row)
        self._learner.ended()

    def _note(self) -> None:
        if self._samples is not None:
            self._samples.note(self._service, msgspec.json.encode(self.time.state()))


def _limit(asked: Asked) -> Foreseen:
    limit = float(max(asked.most, 1))
    length = Length(mean=limit, p50=limit, p80=limit, p95=limit, source="limit")
    return Foreseen(asked.prompt_tokens, asked.most, length)


def _room(length: Length) -> int:
    """Tokens of room that are kept for an answer."""
    return min(math.ceil(length.p80), UNKNOWN_TOKENS) if length.source == "limit" else math.ceil(length.p80)


def _few(length: Length) -> float:
    """A length that most answers reach: as far below p50 as p80 is above it, by ratio. None where nothing is known."""
    return 0.0 if length.source == "limit" else max(1.0, length.p50 * length.p50 / length.p80)


def _time(noted: bytes | None) -> RequestTime:
    if noted is None:
        return RequestTime()
    try:
        return RequestTime.restored(msgspec.json.decode(noted, type=PaceState))
    except msgspec.DecodeError:
        return RequestTime()
