"""The settings of services, a struct for each kind. Users and the rest of the house find them in `settings`."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec

from foreserve.devices import check_device
from foreserve.settings_base import Settings, above, at_least

ROUTE: Final = re.compile(r"(/[A-Za-z0-9._~-]*[A-Za-z0-9_~-])+")
"""A path that a function may be served at."""

OUR_PATHS: Final = ("docs", "health", "metrics", "openapi.json", "redoc", "v1", "v2")
"""The first parts of the paths that the gateway serves itself."""


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
        at_least("max_waiting", self.max_waiting, 1)
        above("max_wait_s", self.max_wait_s, 0)


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
    policy_options: dict[str, Any] = msgspec.field(default_factory=dict)
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
            above(name, getattr(self, name), 0)
        if not 0.5 <= self.level < 1.0:
            raise ValueError(f"`level` is {self.level}; it must be at least 0.5 and below 1")
        if self.command is not None and (not self.command or not self.command[0].strip()):
            raise ValueError("`command` names no program")
        if self.webhook_key_env is not None and self.webhook is None:
            raise ValueError("`webhook_key_env` is set, and no `webhook` to show that key to")
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            raise ValueError(f"`webhook` is {self.webhook!r}; it must be an http:// or https:// address")


class RaySettings(Settings, frozen=True, kw_only=True):
    """What Ray keeps free on a node for each replica of a service; it does nothing where replicas are not on Ray.

    `resources` are those that the nodes of a cluster name themselves, with how much of each. What a replica may really
    use is bounded by its own settings, such as `threads`.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    resources: dict[str, float] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("cpus", "gpus"):
            at_least(name, getattr(self, name), 0)
            if getattr(self, name) > 1 and getattr(self, name) % 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; above 1 it must be a whole number")
        for name, amount in self.resources.items():
            if name in ("CPU", "GPU", "memory", "object_store_memory"):
                raise ValueError(f"`resources` has {name!r}; valid: names of your own (`cpus` and `gpus` are settings)")
            above(f"resources.{name}", amount, 0)


class ServiceSettings(Settings, frozen=True, kw_only=True):
    """What every kind of service can be told.

    `policy` is a batch policy by name (`auto`: what suits the engine), `policy_options` its keyword arguments.
    `placement` chooses the replica, by name (`auto`: `anticipated` for language models, else `least_requests`).
    `deadline_s` and `utility` are the terms of a request that brings none of its own. `python` is the interpreter of
    the worker processes, for models whose packages disagree with ours. `stall_s` is how long a client may leave its
    answer unread before it is cancelled.

    `replicas` is their number, or the least and the most of them: `scaling` then tells how many there are. `ray` is
    what each takes of its node where they are on a Ray cluster.
    """

    replicas: int | tuple[int, int] = 1
    launcher: Literal["local", "inline"] = "local"
    policy: str = "auto"
    policy_options: dict[str, Any] = msgspec.field(default_factory=dict)
    placement: str = "auto"
    queue: QueueSettings = QueueSettings()
    scaling: ScalingSettings = ScalingSettings()
    deadline_s: float | None = None
    utility: float = 1.0
    python: str | None = None
    env: dict[str, str] = msgspec.field(default_factory=dict)
    start_limit_s: float = 300.0
    liveness_s: float = 60.0
    stall_s: float = 30.0
    ray: RaySettings = RaySettings()

    def __post_init__(self) -> None:
        least, most = self.bounds
        at_least("replicas", least, 0)
        if most < max(least, 1) and not isinstance(self.replicas, int):
            raise ValueError(f"`replicas` is {least} to {most}; the most must be at least 1 and no less than the least")
        for name in ("start_limit_s", "liveness_s", "stall_s"):
            above(name, getattr(self, name), 0)
        if self.deadline_s is not None:
            above("deadline_s", self.deadline_s, 0)
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
        above("train_s", self.train_s, 0)
        above("keep_days", self.keep_days, 0)
        at_least("keep_rows", self.keep_rows, 100)


class LLMSettings(ServiceSettings, frozen=True, kw_only=True):
    """A language model on this machine.

    `model` is a packaged model's name, a GGUF file or a Hugging Face folder. `engine` (docs/engines.md) is chosen from
    the model when `auto`. `weights` is the precision kept in memory; `exact` makes answers independent of who else is
    in the batch, at about half the speed. `max_running` bounds the sequences that run at once, `kv_cache_gb` (GiB)
    their memory (with `transformers` at least one context), `max_batched_tokens` one engine step. `default_max_tokens`
    holds for requests that name none (`None`: up to the context). `device` is where the engine `transformers` computes.
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
    device: str = "cpu"
    engine_options: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)
        for name in ("max_running", "max_batched_tokens"):
            at_least(name, getattr(self, name), 1)
        for name in ("threads", "context_tokens", "default_max_tokens"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1)
        above("kv_cache_gb", self.kv_cache_gb, 0)


class EncoderSettings(ServiceSettings, frozen=True, kw_only=True):
    """An encoder of texts or images on this machine: embeddings, ranking, and tasks that were trained for it.

    `model` is a packaged model's name or a Hugging Face folder, also one of sentence-transformers. `tasks` is a folder
    of tasks that `foreserve adapt` made. `elastic` are the token settings (`merge:4`, …) that embeddings may be made
    with where a request asks for it, or always with `elastic_always`; a task has its own. `weights` is the precision in
    memory. At most `max_running` inputs run together. The settings are measured when a worker starts, within about
    `measure_s` seconds.
    """

    model: str
    tasks: str | None = None
    elastic: list[str] = msgspec.field(default_factory=list)
    elastic_always: bool = False
    weights: Literal["f32", "bf16", "f16"] = "f32"
    threads: int | None = None
    max_running: int = 32
    measure_s: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("max_running", self.max_running, 1)
        above("measure_s", self.measure_s, 0)
        if self.threads is not None:
            at_least("threads", self.threads, 1)
        wrong = [each for each in self.elastic if not re.fullmatch(r"plain|merge:[1-9][0-9]{0,3}", each)]
        if wrong:
            raise ValueError(f"`elastic` has {wrong[0]!r}; valid: merge:R, R at least 1")
        if self.elastic_always and not self.elastic:
            raise ValueError("`elastic_always` is set, and `elastic` names no setting")


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
            above(name, getattr(self, name), 0)
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
        at_least("max_running", self.max_running, 1)

    @property
    def scaled(self) -> bool:
        """Whether their number follows the load."""
        return not isinstance(self.replicas, int)


class WeightsSettings(Settings, frozen=True, kw_only=True):
    """Read-only data of a function: where it is, and the SHA-256 that its contents must have, in hex.

    `source` is a safetensors file, an http:// or https:// address, or a callable that returns arrays by name
    (`"module:name"`, `"file.py:name"`).
    """

    source: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise ValueError("`source` is empty; valid: a path, an address or a loader")
        scheme, is_address, _ = self.source.partition("://")
        if is_address and scheme not in ("http", "https"):
            raise ValueError(f'`source` is {self.source!r}; valid: a path, http://, https://, "module:name"')
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", self.sha256):
            raise ValueError(f"`sha256` is {self.sha256[:80]!r}; it must be 64 hex digits")


class FunctionSettings(ServiceSettings, frozen=True, kw_only=True):
    """A Python function, generator, async function or class: `target` is `"module:name"` or `"file.py:name"`.

    `max_running` calls run side by side in one worker, each in a thread of its own. With `batch` above 1 a worker runs
    up to so many calls together, and one batch at a time: each parameter is then a list. A batch that could still grow
    is held open for at most `batch_wait_s` (see docs/functions.md). A call that runs longer than `timeout_s` ends with
    an error. One whose worker is lost before anything was delivered runs again if the function is `idempotent`: running
    it twice does no harm.

    `weights` are a safetensors file, an address or a loader, or several by name; relative paths are meant from the
    function's own file. On a `device` such as `cuda:0` they are tensors of torch there. `memory_mb` (MiB) bounds what a
    worker may write to, beyond what it has when it is ready. `route` is a path of its own, such as `/predict`.
    `imports` are the modules that its processes have imported before they are wanted (`None`: those that its file
    imports, and with `runtime.learn_imports` what its workers import).
    """

    target: str
    weights: str | dict[str, str | WeightsSettings] | None = None
    device: str = "cpu"
    memory_mb: float | None = None
    batch: int = 1
    batch_wait_s: float = 0.01
    timeout_s: float | None = None
    route: str | None = None
    imports: list[str] | None = None
    max_running: int = 8
    idempotent: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("max_running", self.max_running, 1)
        at_least("batch", self.batch, 1)
        at_least("batch_wait_s", self.batch_wait_s, 0)
        for name in ("memory_mb", "timeout_s"):
            if getattr(self, name) is not None:
                above(name, getattr(self, name), 0)
        if ":" not in self.target:
            raise ValueError(f'`target` is {self.target!r}; valid: "module:name" or "file.py:name"')
        check_device(self.device)
        if self.device != "cpu" and self.weights is None:
            raise ValueError(f"`device` is {self.device!r}, where its `weights` would be copied to, and it has none")
        for name, source in self.weights_by_name.items():
            if not name.isidentifier():
                raise ValueError(f"`weights`: {name!r} is no name for weights; valid: a Python word")
            if isinstance(source, str):
                WeightsSettings(source=source)
        self._check_route()

    def _check_route(self) -> None:
        if self.route is None:
            return
        if not ROUTE.fullmatch(self.route):
            raise ValueError(f"`route` is {self.route!r}; valid: a path such as /predict or /images/tag")
        if self.route.split("/")[1] in OUR_PATHS:
            raise ValueError(
                f"`route` is {self.route!r}, and /{self.route.split('/')[1]} is ours; taken: /{', /'.join(OUR_PATHS)}"
            )

    @property
    def weights_by_name(self) -> dict[str, str | WeightsSettings]:
        """What it reads, by the name under which it asks for it; that of the only one is `weights`."""
        if isinstance(self.weights, str):
            return {"weights": self.weights}
        return self.weights or {}
