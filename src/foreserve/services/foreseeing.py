"""What a language-model service foresees of each request, and how it learns from how they end.

`about` is asked when a request has come, `price` when it is submitted, `settled` when it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from foreserve.clock import offload, precise, wall
from foreserve.core import Length, Outcome, OutcomeKind, Price
from foreserve.foresight.length import Asked, Ended
from foreserve.foresight.length_features import Encoder, Features, featurise
from foreserve.foresight.length_history import History
from foreserve.foresight.length_predictor import Predictor
from foreserve.foresight.service_time import PaceState, RequestTime
from foreserve.samples import Keep, MemorySamples, Sample, Samples, SampleStore
from foreserve.services.foreseen import Foreseen, priced, unforeseen
from foreserve.services.learning import Learned, Learner, same
from foreserve.services.meanings import Given, Meaning, Meanings
from foreserve.services.tiers import Choice, choose
from foreserve.services.training import Tier, trains
from foreserve.settings import ForesightSettings

log = logging.getLogger(__name__)

MOST_PENDING: Final = 65_536
MOST_TOKENS: Final = 2**31 - 1
NOTE_EVERY: Final = 100
"""Answers after which what was learned of times is written down."""

Training = Literal["taken", "refused", "failed"]


class ForesightStatus(msgspec.Struct, frozen=True, kw_only=True):
    """For people and metrics: the tier that serves now, the models in place, what was learned from.

    `chosen` is the best tier that may serve here, once a model of it is in place, and `why` tells why.
    """

    tier: str
    chosen: str
    why: str
    models: dict[str, int]
    answers: int
    pending: int
    without_meaning: int


class Foreseer:
    """Of one service. Until it is started nothing is known, and every answer is taken to reach its limit.

    `predicted` hears the seconds that each prediction took, `trained` what became of each training and its seconds.
    """

    def __init__(self, settings: ForesightSettings, *, words: bool = True) -> None:
        """`words`: texts mean something here, so that the full tier may be worth its time."""
        self.settings = settings
        self._words = words
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
        self._pending: OrderedDict[str, Foreseen] = OrderedDict()
        self._answers = 0

    # --- it starts and ends

    async def start(self, service: str, store: SampleStore | None, folder: Path | None) -> None:
        """Take up what the service has learned before. Without `store` and `folder` nothing outlives `stop`."""
        settings = self.settings
        self._service = service
        self.choice, encoder = await self._chosen()
        log.info("%s: answer lengths are foreseen by the %s tier: %s", service, self.choice.tier, self.choice.why)
        if settings.predictor == "off":
            return
        tiers: tuple[Tier, ...] = ("fast", "full") if encoder is not None else ("fast",)
        self._predictors = {tier: Predictor(history=self._history, encoder=encoder) for tier in tiers}
        self._meanings = None if encoder is None else Meanings(encoder)
        keep = {service: Keep(rows=settings.keep_rows, days=settings.keep_days)}
        samples: Samples = MemorySamples(keep) if store is None else store
        try:
            self.time = _time(await offload(lambda: samples.noted(service)))
        except Exception:
            log.exception("%s: what was learned of times cannot be read; it is learned anew", service)
        self._samples = samples  # only now: a stop before would note down that nothing is known
        tiers = tiers if trains(settings) else ()
        self._learner = Learner(service, settings, samples, folder, tiers, self._install, self._trained)
        await self._learner.start()

    async def _chosen(self) -> tuple[Choice, Encoder | None]:
        """Measured, but where that would differ from run to run or texts mean nothing."""
        virtual = getattr(asyncio.get_running_loop(), "virtual", False)
        if self.settings.predictor == "auto" and (virtual or not self._words):
            why = "nothing is measured on a virtual clock" if virtual else "texts mean nothing to a simulated model"
            return Choice(tier="fast", why=why), None
        return await offload(lambda: choose(self.settings.predictor))

    async def stop(self) -> None:
        """End what runs beside the loop. Idempotent."""
        if self._learner is not None:
            await self._learner.stop()
        if self._meanings is not None:
            self._meanings.close()
        self._note()

    def _install(self, learned: Learned) -> None:
        """Called on the loop, so that a prediction sees all of it or nothing."""
        if learned.history is not None:
            self._history = learned.history
        for tier, predictor in self._predictors.items():
            predictor.history = self._history
            model = learned.models.get(tier)
            if not same(model, predictor.model):  # a swap begins anew what is known of its coverage
                predictor.swap(model)

    def _trained(self, outcome: Training, seconds: float) -> None:
        for tell in self.trained:
            tell(outcome, seconds)

    def status(self) -> ForesightStatus:
        """A snapshot."""
        models = {tier: predictor.model for tier, predictor in self._predictors.items()}
        return ForesightStatus(
            tier=self._serving(),
            chosen=self.choice.tier,
            why=self.choice.why,
            models={tier: model.about.samples for tier, model in models.items() if model is not None},
            answers=self._answers,
            pending=len(self._pending),
            without_meaning=0 if self._meanings is None else self._meanings.missed,
        )

    def _serving(self) -> str:
        tiers: tuple[Tier, ...] = ("full", "fast")
        found = [tier for tier in tiers if tier in self._predictors and self._predictors[tier].model is not None]
        return found[0] if found else "off" if self.choice.tier == "off" else "histogram"

    # --- the path of a request

    async def about(self, batch: Sequence[Asked]) -> list[Foreseen]:
        """What is foreseen of these, in order, for `Request.about`. Waits milliseconds at most, and never fails."""
        if not self._predictors:
            return [unforeseen(asked) for asked in batch]
        meanings, later = None, list[asyncio.Future[Meaning | None] | None]([None] * len(batch))
        if self._meanings is not None and self._predictors["full"].model is None:
            # To learn from: nothing reads them yet, so nobody waits for them.
            later = [*self._meanings.beside(batch)] or later
        elif self._meanings is not None:
            meanings = await self._meanings.of(batch)
        began = precise()
        try:
            encoder = None if meanings is None else Given(meanings)
            features = featurise(batch, encoder, self._history)
            lengths = self._predict(features)
        except Exception:
            # A prediction is worth less than the answer.
            log.exception("%s: nothing could be foreseen of a request", self._service)
            return [unforeseen(asked) for asked in batch]
        seconds = (precise() - began) / len(batch)
        for tell in self.predicted:
            tell(seconds)
        return [
            Foreseen(asked.prompt_tokens, asked.most, length, known, meaning)
            for asked, length, known, meaning in zip(batch, lengths, features, later, strict=True)
        ]

    def _predict(self, features: Sequence[Features]) -> list[Length]:
        """By the best model that can read these; by histograms where there is none."""
        full = self._predictors.get("full")
        if full is not None and full.model is not None and all(one.meaning is not None for one in features):
            return full.predict_features(features)
        return self._predictors["fast"].predict_features(features)

    def price(self, request_id: str, about: object, cost: dict[str, float], *, ramps: bool) -> Price:
        """`cost` with room for the answer, and what is foreseen. `ramps`: its replica can look ahead.

        `about` is what `about` has given for this request; without it the price is the cost alone.
        """
        if not isinstance(about, Foreseen):
            return Price(cost=cost)
        self._pending[request_id] = about
        while len(self._pending) > MOST_PENDING:
            self._pending.popitem(last=False)
        return priced(about, cost, self.time, worst=self.settings.kv == "worst_case", ramps=ramps)

    def settled(self, outcome: Outcome) -> None:
        """Learn how long an answer was and how long it took. What had not begun teaches nothing."""
        about = self._pending.pop(outcome.id, None)
        if about is None or outcome.first is None:
            return
        tokens = _tokens(outcome.usage.get("output_tokens", 0.0), about.most)
        if tokens < 1:
            return
        done = outcome.kind is OutcomeKind.DONE
        # Who left or was too late would have had at least so much.
        ended = Ended(tokens=tokens, censored=not done or outcome.finish == "length" or tokens >= about.most)
        self._answers += 1
        features = about.learned_from()
        if features is not None:
            self._learn(features, ended, about.length, outcome.tenant)
        if done and outcome.started is not None and outcome.attempt == 0:
            self.time.learn(about.prompt_tokens, tokens, outcome.ended - outcome.started)
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
        if self._samples is not None and self.time.seen:
            self._samples.note(self._service, msgspec.json.encode(self.time.state()))


def _tokens(told: float, most: int) -> int:
    """As an engine or a server tells, within what was asked for; 0 for what is no number."""
    return int(min(told, most, MOST_TOKENS)) if told >= 1 else 0


def _time(noted: bytes | None) -> RequestTime:
    if noted is None:
        return RequestTime()
    try:
        return RequestTime.restored(msgspec.json.decode(noted, type=PaceState))
    except msgspec.DecodeError:
        return RequestTime()
