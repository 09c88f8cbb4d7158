"""Which tier foresees answer lengths on this machine: chosen by the settings, or measured once at the start."""

from __future__ import annotations

import functools
import logging
import statistics
import threading
import time
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from foreserve.errors import ConfigError
from foreserve.foresight.length_features import Encoder
from foreserve.models.catalog import locate

log = logging.getLogger(__name__)

Wanted = Literal["auto", "fast", "full", "histogram", "off"]

QUICK_S: Final = 0.003
"""The full tier is quick enough when half of its embeddings take less: each comes before its request's first token, to
which the whole server shall add less than 5 ms."""

TRIES: Final = 9
MOST_S: Final = 3.0
"""What is measured, at most."""

_TEXTS: Final = (
    "Rewrite the following paragraph so that a reader who is new to the subject understands it, and keep it short.",
    "Fix the mistakes in this sentence: the childs was playing in garden when it begin to raining hard yesterday.",
    "Translate into French: the meeting has been moved to Thursday because two of our guests arrive a day later.",
)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The tier in use, and why, with the figures that it was chosen by. `p50_s`: of one embedding, where measured."""

    tier: Literal["fast", "full", "histogram", "off"]
    why: str
    p50_s: float | None = None


_once = threading.Lock()


@functools.cache
def _load() -> tuple[Encoder, float]:
    from foreserve.foresight.length_encoder import MiniLM

    encoder = MiniLM(locate("minilm", "the full tier of foresight").path)
    return encoder, measured(encoder)


def encoder_here() -> tuple[Encoder, float]:
    """The full tier's encoder and the p50 of one embedding, in seconds: one for all services of this process.

    The first call takes a second or two. Raises ConfigError where something of it is missing.
    """
    with _once:  # services start side by side
        return _load()


def choose(wanted: Wanted, here: Callable[[], tuple[Encoder, float]] = encoder_here) -> tuple[Choice, Encoder | None]:
    """The tier, and its encoder where it is the full one. May take seconds: keep it off the loop.

    Raises ConfigError when `full` is wanted by name and cannot be.
    """
    if wanted in ("fast", "histogram", "off"):
        return Choice(tier=wanted, why="the settings name it"), None
    try:
        encoder, p50 = here()
    except ConfigError as error:
        if wanted == "full":
            raise
        return Choice(tier="fast", why=f"no embeddings here: {error}"), None
    except Exception as error:  # of whatever library embeds: none of them is worth a start that fails
        if wanted == "full":
            raise
        log.warning("the full tier of foresight cannot be used here", exc_info=True)
        return Choice(tier="fast", why=f"the embeddings here fail: {type(error).__name__}: {error}"), None
    words = f"an embedding takes {p50 * 1e3:.1f} ms (p50)"
    if wanted == "full":
        return Choice(tier="full", why=f"the settings name it; {words}", p50_s=p50), encoder
    if p50 < QUICK_S:
        return Choice(tier="full", why=f"{words}, under {QUICK_S * 1e3:g} ms", p50_s=p50), encoder
    return Choice(tier="fast", why=f"{words}, not under {QUICK_S * 1e3:g} ms", p50_s=p50), None


def measured(encoder: Encoder, clock: Callable[[], float] = time.perf_counter) -> float:  # noqa: TID251 - off any loop
    """Half of the embeddings of one text take less than this, in seconds."""
    encoder.inputs([_TEXTS[0]])  # the first one compiles
    taken: list[float] = []
    while len(taken) < TRIES and sum(taken) < MOST_S:
        began = clock()
        encoder.inputs([_TEXTS[len(taken) % len(_TEXTS)]])
        taken.append(clock() - began)
    return statistics.median(taken)
