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
from typing import Any, Final, Literal

import msgspec


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"`{name}` is {value}; it must be at least {least}")


def _above(name: str, value: float, bound: float) -> None:
    if not value > bound:
        raise ValueError(f"`{name}` is {value}; it must be above {bound}")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all settings: frozen, keyword only, unknown keys refused."""


class QueueSettings(Settings, frozen=True, kw_only=True):
    """How much may wait for one service, and how long.

    A request is shed when `max_waiting` others wait (twice as many, where its tenant has less than its share of them),
    or when its predicted wait exceeds `max_wait_s` (or its own deadline, if that is sooner). `admission` is how that is
    judged, by name; `auto` is `foreseen` (by the request's own forecast and its place in the order) where the policy
    tells that place, else `bounded`; when only observing it is `bounded`.
    """

    max_waiting: int = 256
    max_wait_s: float = 30.0
    admission: str = "auto"

    def __post_init__(self) -> None:
        _at_least("max_waiting", self.max_waiting, 1)
        _above("max_wait_s", self.max_wait_s, 0)


class ScalingSettings(Settings, frozen=True, kw_only=True):
    """How the number of replicas follows the load, where `replicas` leaves it open.

    `policy` is a scaling policy by name, `policy_options` its keyword arguments. It is asked every `every_s` seconds.
    What came is counted in windows of `window_s` seconds, kept for `keep_days`; `forecaster` foresees it, by name, or
    `auto`: the one that would have been best on this service's own history. The load is taken to have the season of a
    day of `day_s`, which is shorter where a trace is played faster; what is foreseen at most is enough with the chance
    `level`. `idle_s` is how long a service that may go
    to no replicas keeps the last one when nothing comes. A replica that is wanted no more may take `drain_s` to finish
    what it runs; then what can goes on elsewhere. Where replicas are servers that we cannot start, `command` (a
    program and its arguments) or `webhook` (an address) is told how many are wanted; `webhook_key_env` names the
    environment variable with the token that is shown there.
    """

    policy: str = "hybrid"
    policy_options: dict[str, Any] = {}
    forecaster: str = "auto"
    every_s: float = 2.0
    window_s: float = 60.0
    keep_days: float = 28.0
    day_s: float = 86_400.0
    level: float = 0.8
    idle_s: float = 300.0
    drain_s: float = 300.0
    command: list[str] | None = None
    webhook: str | None = None
    webhook_key_env: str | None = None

    def __post_init__(self) -> None:
        if self.command is not None and self.webhook is not None:
            raise ValueError("`command` and `webhook` are both set; one of them is told")
        for name in ("every_s", "window_s", "keep_days", "day_s", "idle_s", "drain_s"):
            _above(name, getattr(self, name), 0)
        if not 0.5 <= self.level < 1.0:
            raise ValueError(f"`level` is {self.level}; it must be at least 0.5 and below 1")
        if self.command is not None and (not self.command or not self.command[0].strip()):
            raise ValueError("`command` names no program")
        if self.webhook_key_env is not None and self.webhook is None:
            raise ValueError("`webhook_key_env` is set, and no `webhook` to show that key to")
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            raise ValueError(f"`webhook` is {self.webhook!r}; it must be an http:// or https:// address")


class ServiceSettings(Settings, frozen=True, kw_only=True):
    """What every kind of service can be told.

    `policy` is a batch policy by name (`auto`: what suits the engine), `policy_options` its keyword arguments.
    `placement` chooses the replica, by name (`auto`: `anticipated` for language models, else `least_requests`).
    `deadline_s` and `utility` are the terms of a request that brings none of its own. `python` is the interpreter of
    the worker processes, for models whose packages disagree with ours. `stall_s` is how long a client may leave its
    answer unread before it is cancelled.

    `replicas` is their number, or the least and the most of them: `scaling` then tells how many there are.
    """

    replicas: int | tuple[int, int] = 1
    launcher: Literal["local", "inline"] = "local"
    policy: str = "auto"
    policy_options: dict[str, Any] = {}
    placement: str = "auto"
    queue: QueueSettings = QueueSettings()
    scaling: ScalingSettings = ScalingSettings()
    deadline_s: float | None = None
    utility: float = 1.0
    python: str | None = None
    env: dict[str, str] = {}
    start_limit_s: float = 300.0
    liveness_s: float = 60.0
    stall_s: float = 30.0

    def __post_init__(self) -> None:
        least, most = self.bounds
        _at_least("replicas", least, 0)
        if most < max(least, 1) and not isinstance(self.replicas, int):
            raise ValueError(f"`replicas` is {least} to {most}; the most must be at least 1 and no less than the least")
        for name in ("start_limit_s", "liveness_s", "stall_s"):
            _above(name, getattr(self, name), 0)
        if self.deadline_s is not None:
            _above("deadline_s", self.deadline_s, 0)
        self._check_scaling()

    def _check_scaling(self) -> None:
        """Whether all that is set of `scaling` does something. Raises ValueError."""
        upstream, usual = isinstance(self, UpstreamSettings), ScalingSettings()
        changed = [name for name in usual.__struct_fields__ if getattr(self.scaling, name) != getattr(usual, name)]
        for name in ("command", "webhook"):
            if name in changed and not upstream:
                raise ValueError(
                    f"`scaling.{name}` is told how many servers an `upstream` wants; Foreserve starts the replicas of "
                    "all other kinds by itself"
                )
        # Servers may leave by the admin's word too, however many there are.
        idle = [f"`scaling.{name}`" for name in changed if not (upstream and name == "drain_s")]
        if idle and isinstance(self.replicas, int):
            verb = "does" if len(idle) == 1 else "do"
            raise ValueError(
                f"{', '.join(idle)} {verb} nothing with a fixed number of replicas; "
                f"write `replicas: [least, most]`, as in [{min(self.replicas, 1)}, {max(self.replicas, 4)}]"
            )

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the most replicas that there may be."""
        return (self.replicas, self.replicas) if isinstance(self.replicas, int) else self.replicas


class ForesightSettings(Settings, frozen=True, kw_only=True):
    """How a service foresees the length of its answers and what that is used for.

    `predictor` is "fast" (numbers and words alone), "full" (with sentence embeddings), "histogram" (no model), "off"
    (no forecast; room for at most 1,024 tokens of an answer), or "auto": full where its embeddings are installed and
    quick enough on this machine, measured once at the start. `features` chooses what a model looks at, from the input's
    length alone ("length"), also with the application ("application", "instruction"), to everything ("all"). `kv` says
    how room for an answer is kept: by the forecast, looking ahead, or for the worst case.

    A model is trained anew every `train_s` seconds when enough has ended since, in a process of its own. `remember`
    keeps what it is trained on (numbers, no text) and the model for the next start, for at most `keep_days` and
    `keep_rows`; without it both live as long as the server.
    """

    predictor: Literal["auto", "fast", "full", "histogram", "off"] = "auto"
    features: Literal["length", "application", "instruction", "all"] = "all"
    kv: Literal["forecast", "worst_case"] = "forecast"
    train_s: float = 180.0
    remember: bool = True
    keep_days: float = 30.0
    keep_rows: int = 20_000

    def __post_init__(self) -> None:
        _above("train_s", self.train_s, 0)
        _above("keep_days", self.keep_days, 0)
        _at_least("keep_rows", self.keep_rows, 100)


class LLMSettings(ServiceSettings, frozen=True, kw_only=True):
    """A language model on this machine.

    `model` is a packaged model's name, a GGUF file or a Hugging Face folder. `engine` is chosen from the model when
    `auto`. `weights` is the precision kept in memory; `exact` makes answers independent of who else is in the
    batch, at about half the speed. `max_running` bounds the sequences that run at once, `kv_cache_gb` (GiB) their
    memory (with engine `transformers` at least one context), `max_batched_tokens` one engine step. `default_max_tokens`
    holds for requests that name none (`None`: up to the context).
    """

    model: str
    engine: str = "auto"
    weights: Literal["f16", "q8_0", "bf16", "f32"] | None = None
    exact: bool = False
    threads: int | None = None
    context_tokens: int | None = None
    max_running: int = 16
    max_batched_tokens: int = 512
    kv_cache_gb: float = 1.0
    prefix_caching: bool = True
    default_max_tokens: int | None = None
    foresight: ForesightSettings = ForesightSettings()
    engine_options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_running", "max_batched_tokens"):
            _at_least(name, getattr(self, name), 1)
        for name in ("threads", "context_tokens", "default_max_tokens"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        _above("kv_cache_gb", self.kv_cache_gb, 0)


class UpstreamSettings(ServiceSettings, frozen=True, kw_only=True):
    """A model on servers that already run and speak OpenAI's API: each address in `urls` is a replica.

    `model` is its name there (`None`: every model they list). `max_running` bounds the requests in flight at each.
    `observe` forwards everything at once, unchanged, and only reports what would have been done; nothing is foreseen
    then. `api_key_env` names the environment variable that holds their key. With `engine_priority` each request is
    given its place in our order as `priority`, which servers that schedule by priority take and others refuse.
    `timeout_s` bounds the silence of a server within an answer.

    A server that has answered nothing for `probe_every_s` is asked for one token; when neither that nor anything else
    comes within `probe_limit_s` it counts as hung: within `probe_busy_s`, or longer where much was asked of it, while
    it owes the first byte of an answer and does not tell its progress. `probe` turns that on or off;
    `None`: on, unless only observing. `may_join` has the hosts (`gpu*.lan`, `10.0.0.0/8`) whose servers may join later;
    `None`: any but link-local ones. With a range of `replicas` their number follows the load (`scaling`), and `urls`
    may name places where no server is yet.
    """

    urls: list[str]
    launcher: Literal["inline"] = "inline"
    model: str | None = None
    max_running: int = 64
    observe: bool = False
    foresight: ForesightSettings = ForesightSettings()
    engine_priority: bool = False
    api_key_env: str | None = None
    connect_s: float = 5.0
    timeout_s: float = 300.0
    probe: bool | None = None
    probe_every_s: float = 5.0
    probe_limit_s: float = 5.0
    probe_busy_s: float = 120.0
    may_join: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("probe_every_s", "probe_limit_s", "probe_busy_s"):
            _above(name, getattr(self, name), 0)
        if isinstance(self.replicas, int) and self.replicas != 1:
            raise ValueError(
                f"`replicas` is {self.replicas}; `urls` tell how many there are, or a range: "
                "`replicas: [least, most]` with `scaling.command` or `.webhook`"
            )
        if self.scaled and self.scaling.command is None and self.scaling.webhook is None:
            raise ValueError("`replicas` is a range, and nobody starts servers: set `scaling.command` or `.webhook`")
        if not self.urls and not (self.scaled and self.bounds[0]):
            raise ValueError("`urls` names no server")
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"`urls`: {url!r} is not an http:// or https:// address")
        _at_least("max_running", self.max_running, 1)

    @property
    def scaled(self) -> bool:
        """Whether their number follows the load."""
        return not isinstance(self.replicas, int)


class FunctionSettings(ServiceSettings, frozen=True, kw_only=True):
    """A Python function, generator or async function: `target` is `"module:name"` or `"file.py:name"`.

    `max_running` calls run side by side in one worker, each in a thread of its own. A call whose worker is lost before
    anything was delivered runs again if the function is `idempotent`: running it twice does no harm.
    """

    target: str
    max_running: int = 8
    idempotent: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("max_running", self.max_running, 1)
        if ":" not in self.target:
            raise ValueError(f'`target` is {self.target!r}; valid: "module:name" or "file.py:name"')


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
    api_keys: list[ApiKey] = []
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
        _at_least("max_body_bytes", self.max_body_bytes, 1024)
        _at_least("max_connections", self.max_connections, 1)
        _above("body_s", self.body_s, 0)


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
        _above("decisions_mb", self.decisions_mb, 0)


class MachineSettings(Settings, frozen=True, kw_only=True):
    """What all services share: at most `replicas` of them, in at most `memory_gb` (GiB) together. `None`: no bound.

    Where they want more than there is, it goes where it is foreseen to be needed most.
    """

    replicas: int | None = None
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        if self.replicas is not None:
            _at_least("replicas", self.replicas, 1)
        if self.memory_gb is not None:
            _above("memory_gb", self.memory_gb, 0)


class RuntimeSettings(Settings, frozen=True, kw_only=True):
    """How worker processes start and leave, and what they share.

    `fork` starts workers out of a process that has imported their packages before; without it each is a new
    interpreter. Such a process stays for `context_s` after its last worker. Read-only weights are held once for all
    workers of this machine, and for `host_s` after the last one let go of them; together at most `host_gb` (GiB;
    `None`: no bound). They are read by `readers` threads in chunks of `chunk_mb` (MiB). `sources` has the beginnings of
    addresses that weights may come from, such as `https://models.example.org/`; files need none.
    """

    fork: bool = True
    context_s: float = 1800.0
    host_s: float = 900.0
    host_gb: float | None = None
    readers: int = 4
    chunk_mb: int = 16
    sources: list[str] = []

    def __post_init__(self) -> None:
        for name in ("context_s", "host_s"):
            _at_least(name, getattr(self, name), 0)
        for name in ("readers", "chunk_mb"):
            _at_least(name, getattr(self, name), 1)
        if self.host_gb is not None:
            _above("host_gb", self.host_gb, 0)
        for source in self.sources:
            if not source.startswith(("http://", "https://")) or source.count("/") < 3:
                raise ValueError(
                    f"`sources`: {source!r} is no beginning of an address; valid: as https://models.example.org/"
                )


class AppSettings(Settings, frozen=True, kw_only=True):
    """What an app has beside its services."""

    server: ServerSettings = ServerSettings()
    state: StateSettings = StateSettings()
    machine: MachineSettings = MachineSettings()
    runtime: RuntimeSettings = RuntimeSettings()


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
