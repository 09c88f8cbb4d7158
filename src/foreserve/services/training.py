"""Trains the models of one service from its samples and judges them: a pure function of its job but for the files.

It runs in a process of its own beside a server (`training_process`), on a virtual loop and in the command line where it
is called.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from foreserve import samples
from foreserve.errors import ConfigError
from foreserve.foresight.length import Ended
from foreserve.foresight.length_features import Features, FeatureSet
from foreserve.foresight.length_history import History
from foreserve.foresight.length_model import Model
from foreserve.foresight.length_training import LEAST_SAMPLES, train
from foreserve.foresight.length_verdict import Sample, better
from foreserve.samples import Trained
from foreserve.settings import ForesightSettings

log = logging.getLogger(__name__)

Tier = Literal["fast", "full"]

HELD_OUT: Final = 0.15
MOST_HELD_OUT: Final = 2000
LEAST_HELD_OUT: Final = 20
"""The newest samples, on which models are judged: a share of all, never such as the model in place may have seen.

`LEAST_HELD_OUT` counts those that ended by themselves: of answers that were all cut, no guess could be too long."""

MOST_GROWTH: Final = 1.25
"""A model begins where the one before ended while there are at most so many times its samples."""

FEATURES: Final[dict[str, FeatureSet]] = {"length": "uilo", "application": "raft", "instruction": "inst", "all": "usin"}
"""The settings' words for what a model looks at."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to train: from the store at `store`, or from `rows` where nothing is kept on disk.

    `folder` is where the models are read and written. `trained` is what is known of those in place.
    """

    service: str
    folder: str
    features: str
    tiers: tuple[Tier, ...]
    most_rows: int
    store: str | None = None
    rows: Sequence[samples.Sample] = ()
    trained: Trained | None = None


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one tier's model: `taken` when it was written, and why in words with the figures."""

    tier: Tier
    taken: bool
    why: str
    rows: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job. `newest` is the last row that was looked at."""

    judged: list[Judged]
    newest: int


def model_path(folder: Path, service: str, tier: Tier) -> Path:
    """Where the model of a service and tier is kept."""
    return samples.model_file(folder, service).with_suffix(f".{tier}")


def load(folder: Path, service: str, tier: Tier) -> Model | None:
    """The model in place; `None` where there is none, or none that can be used."""
    path = model_path(folder, service, tier)
    if not path.exists():
        return None
    try:
        return Model.load(path)
    except ConfigError as error:
        log.warning("%s; a new one will be trained", error)
        return None


def known(rows: Sequence[samples.Sample]) -> list[Sample]:
    """The samples of stored rows; those of another version of features are left out."""
    found = []
    for row in rows:
        try:
            features = Features.from_bytes(row.features)
        except ValueError:
            continue
        found.append(Sample(features, Ended(tokens=row.tokens, censored=row.censored)))
    return found


def history_of(told: Sequence[Sample]) -> History:
    """The histograms that these samples make."""
    history = History()
    for sample in told:
        features = sample.features
        history.learn_of(features.app, features.tenant, features.input_tokens, sample.ended)
    return history


def run(job: Job) -> Result:
    """Train, judge and write every tier's model. Takes seconds to a minute of one core. Raises OSError."""
    rows = job.rows if job.store is None else samples.read(Path(job.store), job.service, job.most_rows)
    newest = rows[-1].n if rows else 0
    stale = job.trained is not None and job.trained.stale
    seen = 0 if job.trained is None or stale else job.trained.newest
    unseen = sum(row.n > seen for row in rows)
    least = LEAST_HELD_OUT if len(rows) >= LEAST_SAMPLES + LEAST_HELD_OUT else 0
    held = min(max(int(len(rows) * HELD_OUT), least), unseen, MOST_HELD_OUT)
    if stale:  # nothing that knows of deleted rows may stay, of no tier
        for tier in get_args(Tier):
            if tier not in job.tiers:
                model_path(Path(job.folder), job.service, tier).unlink(missing_ok=True)
    told = known(rows)
    held = min(held, len(told))
    judged = [
        _train(job, tier, told[: len(told) - held], told[len(told) - held :], stale, newest) for tier in job.tiers
    ]
    return Result(judged=_settled(job, judged, told[len(told) - held :]), newest=newest)


def _settled(job: Job, judged: list[Judged], held: list[Sample]) -> list[Judged]:
    """Where both tiers have a model the full one goes unless it is no worse on the same answers: it costs more."""
    folder = Path(job.folder)
    fast, full = load(folder, job.service, "fast"), load(folder, job.service, "full")
    held = [sample for sample in held if sample.features.meaning is not None]
    if "full" not in job.tiers or fast is None or full is None or _ended(held) < LEAST_HELD_OUT:
        return judged
    verdict = better(full, fast, held)
    if verdict.better:
        return judged
    model_path(folder, job.service, "full").unlink(missing_ok=True)
    why = f"{verdict.why} (the fast tier's, which serves alone)"
    return [msgspec.structs.replace(one, taken=False, why=why) if one.tier == "full" else one for one in judged]


def _train(job: Job, tier: Tier, old: list[Sample], held: list[Sample], stale: bool, newest: int) -> Judged:
    """One tier. The fast one never looks at meanings; the full one learns from requests that have them."""
    folder = Path(job.folder)
    path = model_path(folder, job.service, tier)
    if tier == "full":
        old, held = ([s for s in part if s.features.meaning is not None] for part in (old, held))
    else:
        old, held = ([_without_meaning(sample) for sample in part] for part in (old, held))
    why = ""
    if len(old) < LEAST_SAMPLES:
        every = len(old) + len(held)
        why = f"{every} samples; a model wants at least {LEAST_SAMPLES} beside {LEAST_HELD_OUT} to judge it by"
    elif (ended := _ended(held)) < LEAST_HELD_OUT:
        why = f"refused: {ended} newer answers to judge it by that ended by themselves, not {LEAST_HELD_OUT}"
    if why:
        if stale:
            path.unlink(missing_ok=True)
        return Judged(tier=tier, taken=False, why=why, rows=len(old))
    before = None if stale else load(folder, job.service, tier)
    # With many more samples there is more to be looked at than what the model before chose.
    warm = before if before is not None and len(old) < MOST_GROWTH * before.about.samples else None
    model = train(old, seed=newest, features=FEATURES[job.features], warm=warm)
    verdict = better(model, before or history_of(old), held)
    if verdict.better:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        model.save(path)
    elif stale:
        path.unlink(missing_ok=True)
    return Judged(tier=tier, taken=verdict.better, why=verdict.why, rows=len(old))


def _ended(held: list[Sample]) -> int:
    """How many of these ended by themselves."""
    return sum(not sample.ended.censored for sample in held)


def _without_meaning(sample: Sample) -> Sample:
    if sample.features.meaning is None:
        return sample
    return Sample(msgspec.structs.replace(sample.features, meaning=None), sample.ended)


def trains(settings: ForesightSettings) -> bool:
    """Whether a service with these settings has models at all."""
    return settings.predictor not in ("off", "histogram")
