"""What is served: an app, as a file names it or a program makes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from foreserve import registry
from foreserve.errors import ConfigError
from foreserve.parsing import parse
from foreserve.ports import Launcher
from foreserve.services.served import Served
from foreserve.services.together import agree
from foreserve.settings import (
    AppSettings,
    ClusterSettings,
    MachineSettings,
    RuntimeSettings,
    ServerSettings,
    Settings,
    StateSettings,
)

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from foreserve.running import Running
    from foreserve.services.pipeline import ServablePipeline

S = TypeVar("S", bound=Settings)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


class App:
    """The services of one house, by name, and how they are reached.

    `App(chat=LLM("smollm2"), server={"port": 9000})`. A name that is no Python word goes in as `**{"my-model": …}`.
    Pipelines go in like services. Raises ConfigError for what is neither, a bad name and wrong settings.
    """

    def __init__(
        self,
        *,
        server: Mapping[str, Any] | ServerSettings | None = None,
        state: Mapping[str, Any] | StateSettings | None = None,
        machine: Mapping[str, Any] | MachineSettings | None = None,
        runtime: Mapping[str, Any] | RuntimeSettings | None = None,
        cluster: Mapping[str, Any] | ClusterSettings | None = None,
        **services: Served | ServablePipeline,
    ) -> None:
        self.settings = AppSettings(
            server=_settings(server, ServerSettings, "server"),
            state=_settings(state, StateSettings, "state"),
            machine=_settings(machine, MachineSettings, "machine"),
            runtime=_settings(runtime, RuntimeSettings, "runtime"),
            cluster=_settings(cluster, ClusterSettings, "cluster"),
        )
        if not services:
            raise ConfigError("App(): nothing to serve; name at least one service, as in App(chat=LLM('smollm2'))")
        kinds: dict[str, Served] = {}
        pipelines: dict[str, ServablePipeline] = {}
        for name, kind in services.items():
            if not NAME.fullmatch(name):
                raise ConfigError(f"App(): {name!r} cannot name a service; valid: letters, digits and . _ / -")
            if _is_pipeline(kind):
                pipelines[name] = kind
                continue
            if not hasattr(kind, "settings") or not hasattr(kind, "engines"):
                raise ConfigError(
                    f"App(): {name!r} is {type(kind).__name__}, not a service; "
                    f"valid: {', '.join(registry.names('kind'))}, as in App({name}=LLM('smollm2'))"
                )
            kinds[name] = kind
        agree(kinds, self.settings.runtime)
        self.services: dict[str, Served] = kinds
        self.pipelines = pipelines
        """By name; they ask the services."""
        for pipeline in pipelines.values():
            pipeline.check(kinds)

    def run(self, launcher: Launcher | None = None) -> Running:
        """Its parts, wired and not yet started. Call it on the event loop that will serve.

        `launcher` starts all replicas in place of those that the settings name, as the simulator's does.
        """
        # A function's worker imports the app file too, and shall not load the gateway's parts, nor need their packages.
        from foreserve.running import Running

        return Running(self.settings, self.services, launcher, self.pipelines)


def _is_pipeline(kind: Served | ServablePipeline) -> TypeIs[ServablePipeline]:
    """By what it has, since its module needs what runs an app."""
    return hasattr(kind, "plan") and hasattr(kind, "check")


def _settings(given: Mapping[str, Any] | S | None, into: type[S], where: str) -> S:
    if isinstance(given, into):
        return given
    return parse(dict(given) if isinstance(given, Mapping) else {} if given is None else given, into, f"App(): {where}")
