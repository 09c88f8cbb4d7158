"""What the services of one app must agree on: paths of their own, and the addresses that weights may come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreserve.errors import ConfigError
from foreserve.services.function_weights import weights_of
from foreserve.settings import FunctionSettings, RuntimeSettings


def agree(services: Mapping[str, Any], runtime: RuntimeSettings) -> None:
    """Raises ConfigError naming the service and what is valid."""
    routes: dict[str, str] = {}
    for name, kind in services.items():
        settings = kind.settings
        if not isinstance(settings, FunctionSettings):
            continue
        if settings.route is not None and (other := routes.setdefault(settings.route, name)) != name:
            raise ConfigError(f"App(): {name!r}: route: {settings.route} is that of {other!r} already; choose another")
        for ref in weights_of(settings):
            if ref.kind == "uri" and not ref.source.startswith(tuple(runtime.sources)):
                allowed = ", ".join(runtime.sources) or "none; set App(runtime={'sources': [...]})"
                raise ConfigError(
                    f"App(): {name!r}: weights: {ref.source} is not allowed; `runtime.sources`: {allowed}"
                )
