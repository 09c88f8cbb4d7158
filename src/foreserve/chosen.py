"""What orders, places and admits one service's requests, made as its settings choose it, or told why not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from foreserve import registry
from foreserve.errors import ConfigError
from foreserve.parsing import parse
from foreserve.ports import Admission, Ahead, BatchPolicy, Placement
from foreserve.scaling import ScalingPolicy
from foreserve.settings import QueueSettings, ScalingSettings


def make_policy(service: str, name: str, options: Mapping[str, Any]) -> BatchPolicy:
    """The batch policy called `name` with `options`. Raises ConfigError naming the option and what is expected."""
    where = f"service {service!r}"
    policy = registry.load("batch policy", name, f"{where}: policy", also=("auto",))
    made: BatchPolicy = _made(policy, name, options, where, "policy_options")
    return made


def make_scaling_policy(service: str, settings: ScalingSettings) -> ScalingPolicy:
    """The scaling policy that `settings` name. Raises ConfigError naming the option and what is expected."""
    where = f"service {service!r}"
    policy = registry.load("scaling policy", settings.policy, f"{where}: scaling.policy")
    made: ScalingPolicy = _made(policy, settings.policy, settings.policy_options, where, "scaling.policy_options")
    return made


def _made(policy: Any, name: str, options: Mapping[str, Any], where: str, word: str) -> Any:
    given = _fitting(policy, name, options, f"{where}: {word}")
    try:
        return policy(**given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (TypeError, ValueError) as error:  # of a policy that does not tell what it takes
        raise ConfigError(f"{where}: {word} do not fit policy {name!r}: {error}") from error


def make_placement(service: str, name: str) -> Placement:
    """Raises ConfigError for a name that is none."""
    made: Placement = registry.load("placement", name, f"service {service!r}: placement", also=("auto",))()
    return made


def placement_name(kind: Any) -> str:
    """The placement of a service of this kind: the one that was chosen, or what suits it."""
    chosen: str = kind.settings.placement
    return getattr(kind, "placement", "least_requests") if chosen == "auto" else chosen


def admission_name(queue: QueueSettings, policy: BatchPolicy) -> str:
    """The admission that judges: what was chosen, or for `auto` by the policy's own order where it tells that."""
    auto = "foreseen" if isinstance(policy, Ahead) else "bounded"
    return auto if queue.admission == "auto" else queue.admission


def make_admission(service: str, queue: QueueSettings, policy: BatchPolicy) -> Admission:
    """See `admission_name`. Raises ConfigError for a name that is none."""
    name = admission_name(queue, policy)
    made: Admission = registry.load("admission", name, f"service {service!r}: queue.admission", also=("auto",))(
        max_waiting=queue.max_waiting, max_wait_s=queue.max_wait_s
    )
    return made


def _fitting(policy: Any, name: str, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`options` as the policy's own signature has them. What is not annotated is taken as it is."""
    try:
        parameters = inspect.signature(policy).parameters.values()
    except (TypeError, ValueError):
        return dict(options)
    keywords = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    valid = [each.name for each in keywords]
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        for option in options:
            if option not in valid:
                rest = registry.choices(option, valid) or "; it takes none"
                raise ConfigError(f"{where}.{option}: unknown option for policy {name!r}{rest}")
    for each in keywords:
        if each.default is each.empty and each.name not in options:
            raise ConfigError(f"{where}: policy {name!r} needs {each.name!r}; valid: {', '.join(valid)}")
    hints = _hints(policy)
    return {
        option: _converted(value, hints[option], f"{where}.{option}") if option in hints else value
        for option, value in options.items()
    }


def _hints(policy: Any) -> dict[str, Any]:
    is_class = inspect.isclass(policy)
    try:
        return get_type_hints(policy.__init__ if is_class else policy)
    except (NameError, TypeError, AttributeError):  # annotations that are there for a type checker alone
        return {}


def _converted(value: Any, kind: Any, where: str) -> Any:
    try:
        return parse(value, kind, where)
    except TypeError:  # an annotation that plain values cannot be told by
        return value
