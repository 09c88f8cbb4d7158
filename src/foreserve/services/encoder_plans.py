"""Which token settings may serve a request: by its own terms, and what the service and its tasks have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from foreserve.errors import BadRequest
from foreserve.registry import choices


class Allowed(msgspec.Struct, frozen=True, kw_only=True):
    """What may serve a request, for `Request.about`: settings with their expected accuracy."""

    plans: dict[str, float]


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks. With `elastic` embeddings may be made under any setting of the service.

    `setting` is the only one that may serve it; `min_accuracy` leaves out those that are not expected to reach it.
    """

    elastic: bool = False
    setting: str | None = None
    min_accuracy: float = 0.0


PLAINLY = Terms()
"""Of a request that asks for nothing."""


OTHERS = ("binary_data_output", "priority", "sequence_end", "sequence_id", "sequence_start", "timeout")
"""Parameters of the protocol and of its usual clients, which are not ours."""


def terms_of(parameters: Mapping[str, Any]) -> Terms:
    """Those among the parameters of a request, which may have those of its protocol too. Raises BadRequest."""
    for name in parameters:
        if name not in Terms.__struct_fields__ and name not in OTHERS:
            raise BadRequest(
                f"`parameters`: {name!r} is not known{choices(name, Terms.__struct_fields__)}",
                param=f"parameters.{name}",
            )
    given = {name: parameters[name] for name in Terms.__struct_fields__ if name in parameters}
    try:
        return msgspec.convert(given, Terms)
    except msgspec.ValidationError as error:
        raise BadRequest(f"`parameters`: {error}", param="parameters") from None


def allowed(plans: Mapping[str, float], terms: Terms) -> Allowed:
    """Those of `plans` that the terms leave. Raises BadRequest where that is none."""
    if terms.setting is not None:
        if terms.setting not in plans:
            words = f"`setting` {terms.setting[:64]!r} does not serve this{choices(terms.setting, list(plans))}"
            raise BadRequest(words, param="foreserve.setting")
        plans = {terms.setting: plans[terms.setting]}
    enough = {each: worth for each, worth in plans.items() if worth >= terms.min_accuracy}
    if not enough:
        best = max(plans, key=lambda each: plans[each])
        raise BadRequest(
            f"`min_accuracy` is {terms.min_accuracy:g}; the best setting, {best}, is expected to reach "
            f"{plans[best]:.3f}",
            param="foreserve.min_accuracy",
        )
    return Allowed(plans=enough)
