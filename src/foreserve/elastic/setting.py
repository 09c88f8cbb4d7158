"""Token settings: how many tokens one forward pass spends."""

from __future__ import annotations

import msgspec

from foreserve.errors import ConfigError


class Plain(msgspec.Struct, frozen=True, tag="plain"):
    """The model as it is."""

    def __str__(self) -> str:
        return "plain"


class Merge(msgspec.Struct, frozen=True, tag="merge"):
    """In each layer the `r` tokens that are most like another are merged into it; faster, at some loss.

    At most half of what may be merged goes in one layer.
    """

    r: int

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ConfigError(f"merge:{self.r}: at least one token is merged in a layer")

    def __str__(self) -> str:
        return f"merge:{self.r}"


class Prompts(msgspec.Struct, frozen=True, tag="prompts"):
    """`p` learned tokens of the task are put behind the class token; a little slower, often more accurate."""

    p: int

    def __post_init__(self) -> None:
        if self.p < 1:
            raise ConfigError(f"prompts:{self.p}: at least one prompt token is added")

    def __str__(self) -> str:
        return f"prompts:{self.p}"


Setting = Plain | Merge | Prompts

PLAIN = Plain()


def parse_setting(word: str) -> Setting:
    """The setting that is spelled so: `plain`, `merge:8` or `prompts:4`. Raises ConfigError for anything else."""
    kind, colon, number = word.partition(":")
    if word == "plain":
        return Plain()
    if kind in ("merge", "prompts") and colon and number.isascii() and number.isdigit():
        return Merge(int(number)) if kind == "merge" else Prompts(int(number))
    raise ConfigError(f"{word!r} is no token setting; valid: plain, merge:R, prompts:P, R and P at least 1")


def by_tokens(setting: Setting) -> int:
    """A key that sorts settings from the fewest tokens to the most."""
    match setting:
        case Merge(r):
            return -r
        case Prompts(p):
            return p
    return 0
