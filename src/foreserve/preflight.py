"""What can be known of an app before it starts: `foreserve serve --dry-run`. Starts nothing and writes nothing.

A kind may bring checks of its own: `check()` raises ConfigError when its model or file is missing, `preflight()` yields
findings, `memory_bytes()` is what one replica needs, `engine_name` which engine was chosen.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from foreserve.app import App
from foreserve.chosen import make_admission, make_placement, make_policy, make_scaling_policy, placement_name
from foreserve.errors import ConfigError
from foreserve.fleet.sharing import Shares
from foreserve.foresight.workload import offered
from foreserve.services.served import leasts, policy_name
from foreserve.settings import Environment, ServerSettings
from foreserve.state import history_file

WORKER = {"msgspec": "msgspec"}
"""What every worker's interpreter must have: modules, and the packages that bring them."""

EXTRAS: dict[str, dict[str, tuple[str, ...]]] = {
    "openvino": {"openvino": ("openvino_genai", "gguf", "tokenizers", "jinja2")},
    "transformers": {"torch": ("torch", "transformers", "gguf", "tokenizers", "jinja2", "safetensors")},
    "vllm": {"vllm": ("vllm",)},
    "elastic": {"torch": ("torch", "transformers", "tokenizers", "safetensors", "PIL")},
}
"""By engine: the extra of Foreserve that it comes with, and the modules that the extra brings."""

ASK_S = 30.0
"""How long another interpreter may take to say what it has."""

GIB = 2**30


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was checked: what, whether it is well, and in words what was found or what to do."""

    ok: bool
    what: str
    detail: str


def check(app: App) -> list[Finding]:
    """Everything that can be told beforehand, service by service and then the machine. Raises nothing of its own."""
    findings: list[Finding] = []
    for name, kind in app.services.items():
        findings += _service(name, kind)
    findings += _memory(app, {finding.detail for finding in findings})
    findings.append(port(app.settings.server))
    if app.settings.state.history:
        state = history_file(app.settings.state).parent
        findings.append(folder("state folder", state, "`state.folder`, FORESERVE_STATE"))
    if any(hasattr(kind.settings, "model") for kind in app.services.values()):
        findings.append(folder("cache folder", Environment.read().cache, "FORESERVE_CACHE"))
    return findings


def _service(name: str, kind: Any) -> Iterator[Finding]:
    """Its order, interpreter and packages, then what its kind knows."""
    yield from _order(name, kind)
    yield from _scaling(name, kind)
    missing = _interpreter(kind.settings.python)
    if isinstance(missing, str):
        yield Finding(ok=False, what=f"{name}: interpreter", detail=missing)
    else:
        yield from _packages(name, kind, missing)
    if hasattr(kind, "check"):
        try:
            kind.check()
        except ConfigError as error:
            yield Finding(ok=False, what=f"{name}: model", detail=str(error))
        else:
            yield Finding(ok=True, what=f"{name}: model", detail=str(getattr(kind.settings, "model", "there")))
    if hasattr(kind, "preflight"):
        for each in kind.preflight():
            yield msgspec.structs.replace(each, what=f"{name}: {each.what}")


def _order(name: str, kind: Any) -> Iterator[Finding]:
    """Its policy, placement and admission, made as they are when it is served."""
    settings = kind.settings
    try:
        policy = make_policy(name, policy_name(kind), settings.policy_options)
    except ConfigError as error:
        yield Finding(ok=False, what=f"{name}: policy", detail=str(error))
    else:
        yield Finding(ok=True, what=f"{name}: policy", detail=policy_name(kind))
        yield from _wrong(f"{name}: admission", lambda: make_admission(name, settings.queue, policy))
    yield from _wrong(f"{name}: placement", lambda: make_placement(name, placement_name(kind)))


def _scaling(name: str, kind: Any) -> Iterator[Finding]:
    """What follows its load, where the number of its replicas does, made as it is when it is served."""
    settings, scaling = kind.settings, kind.settings.scaling
    wrong = [
        *_wrong(f"{name}: scaling", lambda: make_scaling_policy(name, scaling)),
        *_wrong(f"{name}: forecaster", lambda: offered(scaling.forecaster, f"service {name!r}: scaling.forecaster")),
    ]
    if scaling.command is not None:
        program = scaling.command[0].replace("{service}", name)
        if shutil.which(program) is None:
            detail = f"scaling.command: {program!r} is no program that can be run; valid: a path, or a name on PATH"
            wrong.append(Finding(ok=False, what=f"{name}: scaling command", detail=detail))
    yield from wrong
    least, most = settings.bounds
    if not wrong and not isinstance(settings.replicas, int):
        yield Finding(ok=True, what=f"{name}: scaling", detail=f"{scaling.policy}, {least} to {most} replicas")


def _wrong(what: str, made: Callable[[], Any]) -> Iterator[Finding]:
    """A finding where something cannot be made."""
    try:
        made()
    except ConfigError as error:
        yield Finding(ok=False, what=what, detail=str(error))


# --- interpreters and packages

Missing = Callable[[Iterable[str]], list[str]]
"""Which of these modules an interpreter lacks."""


def _interpreter(python: str | None) -> Missing | str:
    """How to ask the interpreter of a worker what it lacks, or in words why it cannot be asked."""
    if python is None:
        return lambda modules: [module for module in modules if importlib.util.find_spec(module) is None]
    path = shutil.which(os.path.expanduser(python))
    if path is None:
        wrong = "is no program that can be run" if Path(python).expanduser().exists() else "is not there"
        return f"python={python!r} {wrong}; this one: {sys.executable}"
    wanted = sorted({*WORKER, *(module for extras in EXTRAS.values() for each in extras.values() for module in each)})
    code = (
        "import importlib.util as u, json, sys; print(json.dumps([list(sys.version_info[:2]), "
        f"[m for m in {wanted!r} if u.find_spec(m) is None]]))"
    )
    try:
        said = subprocess.run([path, "-c", code], capture_output=True, text=True, timeout=ASK_S, check=True)
        version, lacks = json.loads(said.stdout)
    except subprocess.TimeoutExpired:
        return f"python={python!r} gave no answer within {ASK_S:g} s"
    except subprocess.CalledProcessError as error:
        return f"python={python!r} ended with {error.returncode}: {error.stderr.strip()[-200:]}"
    except (OSError, ValueError) as error:
        return f"python={python!r} is no Python interpreter: {error}"
    if version < [3, 11]:
        return f"python={python!r} is Python {version[0]}.{version[1]}; a worker needs 3.11 or newer"
    return lambda modules: [module for module in modules if module in lacks]


def _packages(name: str, kind: Any, missing: Missing) -> Iterator[Finding]:
    python = kind.settings.python
    pip = f"{python or 'python'} -m pip install"
    if python is not None:
        lacks = missing(WORKER)
        detail = f"lacks {', '.join(lacks)}: {pip} {' '.join(WORKER[each] for each in lacks)}" if lacks else python
        yield Finding(ok=not lacks, what=f"{name}: interpreter", detail=detail)
    engine = getattr(kind, "engine_name", getattr(kind.settings, "engine", None))
    if engine == "auto" and getattr(kind.settings, "model", None) != "simulated":
        have = [
            each
            for each, extras in EXTRAS.items()
            if each in ("openvino", "transformers") and not missing(m for modules in extras.values() for m in modules)
        ]
        advice = f"no engine is installed: {pip} 'foreserve[openvino]'"
        yield Finding(ok=bool(have), what=f"{name}: engine", detail=have[0] if have else advice)
    for extra, modules in EXTRAS.get(str(engine), {}).items():
        lacks = missing(modules)
        advice = f"{engine} lacks {', '.join(lacks)}: {pip} 'foreserve[{extra}]'"
        yield Finding(ok=not lacks, what=f"{name}: engine", detail=advice if lacks else str(engine))


# --- the machine


def _memory(app: App, said: set[str]) -> Iterator[Finding]:
    """What the services say they need, against `machine` and what is available. Problems in `said` are not repeated."""
    each: dict[str, int] = {}
    for name, kind in app.services.items():
        if hasattr(kind, "memory_bytes"):
            try:
                each[name] = int(kind.memory_bytes())
            except ConfigError as error:
                if str(error) not in said:
                    yield Finding(ok=False, what=f"{name}: memory", detail=str(error))
    machine = app.settings.machine
    shares = Shares(machine.replicas, machine.memory_gb)
    shares.memory_gb.update({name: need / GIB for name, need in each.items()})
    yield from _wrong("machine", lambda: shares.check(leasts(app.services)))
    needs = {name: need * app.services[name].settings.bounds[1] for name, need in each.items()}
    if not needs:
        return
    free = available_memory()
    parts = ", ".join(f"{name} {need / GIB:.1f}" for name, need in needs.items())
    wanted = f"{sum(needs.values()) / GIB:.1f} GiB needed ({parts})"
    if free is None:
        yield Finding(ok=True, what="memory", detail=f"{wanted}; how much is available is not known here")
        return
    ok = sum(needs.values()) <= free
    advice = "" if ok else "; fewer `replicas`, a smaller `kv_cache_gb` or `weights: q8_0` need less"
    yield Finding(ok=ok, what="memory", detail=f"{wanted}, {free / GIB:.1f} GiB available{advice}")


def available_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that can be used now: of the machine, or of the container where that is less. `None` where not known."""
    amounts: list[int] = []
    try:
        lines = (line.split() for line in proc.read_text().splitlines())
        amounts += [int(words[1]) * 1024 for words in lines if words and words[0] == "MemAvailable:"]
    except (OSError, ValueError, IndexError):
        pass
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:  # the limit reads `max` where there is none
            amounts.append(max(0, int((cgroup / most).read_text()) - int((cgroup / used).read_text())))
        except (OSError, ValueError):
            pass
    if not amounts and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        amounts.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(amounts, default=None)


def port(server: ServerSettings) -> Finding:
    """Whether the server could listen at its address now."""
    what = f"port {server.port}"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except socket.gaierror:
        return Finding(ok=False, what=what, detail=f"host {server.host!r} has no address; valid: 127.0.0.1, 0.0.0.0, …")
    except OSError as error:
        words = {
            errno.EADDRINUSE: "in use; choose another one with --port, or 0 for any that is free",
            errno.EADDRNOTAVAIL: f"host {server.host!r} is not an address of this machine",
            errno.EACCES: "needs rights that this user lacks; choose one above 1023 with --port",
        }
        return Finding(ok=False, what=what, detail=words.get(error.errno or 0, str(error)))
    return Finding(ok=True, what=what, detail=f"free at {server.host}" if server.port else f"any at {server.host}")


def folder(what: str, path: Path, settings: str) -> Finding:
    """Whether `path` can be written, or be made where it is not there yet."""
    path = path.expanduser().absolute()
    there = path
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        return Finding(ok=False, what=what, detail=f"{there} is a file, not a folder; another one: {settings}")
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(ok=False, what=what, detail=f"{there} cannot be written; another one: {settings}")
    return Finding(ok=True, what=what, detail=str(path))
