"""Typed settings: one place for every word an app file may use, the same in Python and in YAML.

`parsing.parse` turns plain values into one of the structs below. What does not fit is a ConfigError that names the
place (`app.yaml: services.chat.queue.max_request`), what is wrong and the valid choices. Environment variables are read
in `Environment` and nowhere else.
"""

from __future__ import annotations

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Final, Literal

import msgspec

from foreserve.settings_base import Settings as Settings
from foreserve.settings_base import above, at_least
from foreserve.settings_graphs import GraphEdgeSettings as GraphEdgeSettings
from foreserve.settings_graphs import GraphNodeSettings as GraphNodeSettings
from foreserve.settings_graphs import GraphSettings as GraphSettings
from foreserve.settings_pipelines import PipelineSettings as PipelineSettings
from foreserve.settings_services import EncoderSettings as EncoderSettings
from foreserve.settings_services import ForesightSettings as ForesightSettings
from foreserve.settings_services import FunctionSettings as FunctionSettings
from foreserve.settings_services import LLMSettings as LLMSettings
from foreserve.settings_services import QueueSettings as QueueSettings
from foreserve.settings_services import RaySettings as RaySettings
from foreserve.settings_services import ScalingSettings as ScalingSettings
from foreserve.settings_services import ServiceSettings as ServiceSettings
from foreserve.settings_services import UpstreamSettings as UpstreamSettings
from foreserve.settings_services import WeightsSettings as WeightsSettings

TENANT: Final = re.compile(r"[A-Za-z0-9._:@-]{1,64}")
TENANT_WORDS: Final = "1 to 64 of letters, digits and . _ : @ -"
"""The tenants that a request may name, and the same in words."""


class ApiKey(Settings, frozen=True, kw_only=True):
    """A key that clients must show, whose they are, and the highest utility they may claim.

    It can record the requests of its own tenant (docs/traces.md); with `records_all` those of every tenant. With
    `admin` it may let servers join and leave (docs/upstream.md), and so read what is sent to them.
    """

    key: str
    tenant: str = "default"
    max_utility: float = 1.0
    deadline_s: float | None = None
    records_all: bool = False
    admin: bool = False

    def __post_init__(self) -> None:
        # `Bearer` with nothing after it would show it: everybody has that one.
        if not self.key.strip():
            raise ValueError("`key` is empty or blank; anybody could show it")


class ServerSettings(Settings, frozen=True, kw_only=True):
    """The HTTP server. With `api_keys`, every request but `/health/*` needs one. Sizes are in bytes.

    A request beyond `max_connections` open ones is a 503, `/health/*` excepted; a body that has not arrived after
    `body_s` seconds is a 408. `record_text` lets recordings have the text of prompts and answers, where they ask for
    it; without it they have lengths and hashes alone. `admin_from` has the networks whose clients may let servers join
    and leave while no key is in use; with keys that takes one with `admin`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: list[ApiKey] = msgspec.field(default_factory=list)
    max_body_bytes: int = 32 * 2**20
    max_connections: int = 2048
    body_s: float = 60.0
    drain_s: float = 30.0
    record_text: bool = False
    admin_from: list[str] = msgspec.field(default_factory=lambda: ["127.0.0.0/8", "::1/128"])

    def __post_init__(self) -> None:
        for network in self.admin_from:
            try:
                ip_network(network)
            except ValueError as error:
                raise ValueError(f"`admin_from`: {error}; valid: a network such as 10.0.0.0/8") from None
        if not 0 <= self.port <= 65535:
            raise ValueError(f"`port` is {self.port}; valid: 0 to 65535")
        at_least("max_body_bytes", self.max_body_bytes, 1024)
        at_least("max_connections", self.max_connections, 1)
        above("body_s", self.body_s, 0)


class StateSettings(Settings, frozen=True, kw_only=True):
    """What survives a restart, how long. Without a `folder` it is `FORESERVE_STATE`; `history` off keeps nothing.

    `decisions` is a file in which every decision of policies, placements and admissions is recorded with its inputs,
    for `foreserve replay`; the recording of the last start is kept beside it. It ends at `decisions_mb` (10^6 bytes).
    Every pick writes all replicas that it could see, so it costs the more the more there are: docs/faults.md.
    """

    folder: str | None = None
    history: bool = True
    history_days: float = 14.0
    history_rows: int = 1_000_000
    decisions: str | None = None
    decisions_mb: float = 1000.0

    def __post_init__(self) -> None:
        above("decisions_mb", self.decisions_mb, 0)


class MachineSettings(Settings, frozen=True, kw_only=True):
    """What all services share: at most `replicas` of them, in at most `memory_gb` (GiB) together. `None`: no bound.

    Where they want more than there is, it goes where it is foreseen to be needed most.
    """

    replicas: int | None = None
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        if self.replicas is not None:
            at_least("replicas", self.replicas, 1)
        if self.memory_gb is not None:
            above("memory_gb", self.memory_gb, 0)


class RuntimeSettings(Settings, frozen=True, kw_only=True):
    """How worker processes start and leave, and what they share.

    `fork` starts workers out of a process that has imported their packages before; without it each is a new
    interpreter. Such a process stays for `context_s` after its last worker. With `learn_imports` it also imports what
    its workers are seen to import before they are ready, and remembers that in the state folder. Read-only weights are
    held once for all workers of this machine, and for `host_s` after the last one let go of them; together at most
    `host_gb` (GiB; `None`: no bound). So are their copies on a GPU: a worker that has been idle for `rest_s` lets go of
    them, and `device_s` after the last one they go; on each GPU at most `device_gb` (GiB; `None`: what it has). Weights
    are read by `readers` threads in chunks of `chunk_mb` (MiB). `sources` has the beginnings of addresses that weights
    may come from, such as `https://models.example.org/`; files need none.
    """

    fork: bool = True
    learn_imports: bool = True
    context_s: float = 1800.0
    host_s: float = 900.0
    host_gb: float | None = None
    rest_s: float = 5.0
    device_s: float = 60.0
    device_gb: float | None = None
    readers: int = 4
    chunk_mb: int = 16
    sources: list[str] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("context_s", "host_s", "device_s", "rest_s"):
            at_least(name, getattr(self, name), 0)
        for name in ("readers", "chunk_mb"):
            at_least(name, getattr(self, name), 1)
        for name in ("host_gb", "device_gb"):
            if getattr(self, name) is not None:
                above(name, getattr(self, name), 0)
        for source in self.sources:
            if not source.startswith(("http://", "https://")) or source.count("/") < 3:
                raise ValueError(
                    f"`sources`: {source!r} is no beginning of an address; valid: as https://models.example.org/"
                )


class ClusterSettings(Settings, frozen=True, kw_only=True):
    """Where replicas run whose `launcher` is `local`: on this machine, or `on` a Ray cluster (docs/cluster.md).

    `address` is that of the cluster's head, such as `10.0.0.1:6379`, or `auto` for the one that this machine is part
    of; without it Ray is started on this machine alone, with a store of `object_store_mb` (MiB) for messages. A replica
    that finds no node with room for it within `place_s` has failed to start.
    """

    on: Literal["local", "ray"] = "local"
    address: str | None = None
    place_s: float = 120.0
    object_store_mb: int = 256

    def __post_init__(self) -> None:
        above("place_s", self.place_s, 0)
        at_least("object_store_mb", self.object_store_mb, 80)
        if self.address is not None:
            if self.on != "ray":
                raise ValueError("`address` is set, and `on` is not `ray`")
            if self.address != "auto" and not re.fullmatch(r"[^\s/]+:[0-9]{1,5}", self.address):
                raise ValueError(f"`address` is {self.address!r}; valid: auto, or the head's as in 10.0.0.1:6379")


class AppSettings(Settings, frozen=True, kw_only=True):
    """What an app has beside its services."""

    server: ServerSettings = ServerSettings()
    state: StateSettings = StateSettings()
    machine: MachineSettings = MachineSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    cluster: ClusterSettings = ClusterSettings()


class Environment(Settings, frozen=True, kw_only=True):
    """The environment variables that Foreserve reads, all of them."""

    cache: Path
    state: Path
    log_level: str

    @classmethod
    def read(cls) -> Environment:
        """`FORESERVE_CACHE`, `FORESERVE_STATE` (folders), `FORESERVE_LOG` (a logging level)."""
        home = Path.home()
        return cls(
            cache=Path(os.environ.get("FORESERVE_CACHE", home / ".cache" / "foreserve")),
            state=Path(os.environ.get("FORESERVE_STATE", home / ".local" / "state" / "foreserve")),
            log_level=os.environ.get("FORESERVE_LOG", "INFO").upper(),
        )
