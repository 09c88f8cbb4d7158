from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from foreserve import preflight
from foreserve.app import App
from foreserve.core import EngineSpec
from foreserve.errors import ConfigError
from foreserve.fleet.inline import InlineLauncher
from foreserve.preflight import GIB, Finding, available_memory, check, folder, port
from foreserve.services.upstream import Upstream
from foreserve.settings import LLMSettings, QueueSettings, ScalingSettings, ServerSettings, ServiceSettings


class Plain:
    """A kind as a package of a user's own might bring it: nothing but what is needed, and hooks where given."""

    name = "plain"
    policy = "fcfs"
    idempotent = True

    def __init__(self, settings: ServiceSettings | None = None, **hooks: Any) -> None:
        self.settings = settings or ServiceSettings()
        for name, hook in hooks.items():
            setattr(self, name, hook)

    def engines(self) -> Sequence[EngineSpec]:
        raise AssertionError("a dry run starts nothing")

    def prepare(self, progress: Any) -> None:
        raise AssertionError("a dry run prepares nothing")


@pytest.fixture
def findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FORESERVE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("FORESERVE_CACHE", str(tmp_path / "cache"))

    def of(kind: Any, **words: Any) -> dict[str, Finding]:
        app = App(server=words.pop("server", {"port": 0}), it=kind, **words)
        made = check(app)
        assert not (tmp_path / "state").exists()
        assert not (tmp_path / "cache").exists()
        return {finding.what: finding for finding in made}

    return of


def test_an_app_that_is_well(findings: Any) -> None:
    made = findings(Plain())
    assert list(made) == ["it: policy", "port 0", "state folder"]
    assert all(finding.ok for finding in made.values())


def test_without_history_no_state_folder_is_wanted(findings: Any) -> None:
    assert "state folder" not in findings(Plain(), state={"history": False})


# --- what kinds bring


def test_a_missing_model_is_a_finding(findings: Any) -> None:
    def missing() -> None:
        raise ConfigError("service 'it': no model 'smolm2'; did you mean 'smollm2'?")

    finding = findings(Plain(check=missing))["it: model"]
    assert not finding.ok
    assert "did you mean 'smollm2'" in finding.detail
    assert findings(Plain(check=lambda: None))["it: model"].ok


def test_findings_of_its_own_are_named_by_service(findings: Any) -> None:
    own = [Finding(ok=False, what="server", detail="http://127.0.0.1:1 does not answer")]
    assert not findings(Plain(preflight=lambda: own))["it: server"].ok


def test_memory_is_summed_over_replicas(findings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: 5 * GIB)
    enough = findings(Plain(ServiceSettings(replicas=2), memory_bytes=lambda: 2 * GIB))["memory"]
    assert enough == Finding(ok=True, what="memory", detail="4.0 GiB needed (it 4.0), 5.0 GiB available")
    short = findings(Plain(ServiceSettings(replicas=3), memory_bytes=lambda: 2 * GIB))["memory"]
    assert not short.ok
    assert "6.0 GiB needed (it 6.0), 5.0 GiB available; fewer `replicas`" in short.detail
    both = findings(Plain(memory_bytes=lambda: 2 * GIB), other=Plain(memory_bytes=lambda: 4 * GIB))["memory"]
    assert not both.ok
    assert "it 2.0, other 4.0" in both.detail


def test_a_damaged_model_is_a_finding_and_said_once(findings: Any) -> None:
    def damaged() -> int:
        raise ConfigError("m.gguf: not a GGUF file")

    assert not findings(Plain(memory_bytes=damaged))["it: memory"].ok
    made = findings(Plain(check=damaged, memory_bytes=damaged))
    assert "it: memory" not in made
    assert not made["it: model"].ok


def test_memory_that_is_not_known_is_said(findings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: None)
    assert "not known" in findings(Plain(memory_bytes=lambda: GIB))["memory"].detail


def test_available_memory_is_the_least_limit(tmp_path: Path) -> None:
    info, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    info.write_text("MemTotal:       16000 kB\nMemAvailable:    8000 kB\n")
    cgroup.mkdir()
    assert available_memory(info, cgroup) == 8000 * 1024
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("1000\n")
    assert available_memory(info, cgroup) == 8000 * 1024
    (cgroup / "memory.max").write_text("5000\n")
    assert available_memory(info, cgroup) == 4000
    (cgroup / "memory.current").write_text("6000\n")
    assert available_memory(info, cgroup) == 0


def test_available_memory_here_is_a_plausible_amount() -> None:
    amount = available_memory()
    assert amount is not None
    assert 2**20 < amount < 2**50


# --- packages and interpreters


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "python"
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_an_interpreter_that_has_what_a_worker_needs(findings: Any) -> None:
    finding = findings(Plain(ServiceSettings(python=sys.executable)))["it: interpreter"]
    assert finding == Finding(ok=True, what="it: interpreter", detail=sys.executable)


def test_an_interpreter_without_the_packages_names_the_command(findings: Any, tmp_path: Path) -> None:
    bare = script(tmp_path, f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    finding = findings(Plain(ServiceSettings(python=bare)))["it: interpreter"]
    assert not finding.ok
    assert finding.detail == f"lacks msgspec: {bare} -m pip install msgspec"


@pytest.mark.parametrize(
    ("text", "limit_s", "words"),
    [
        ("#!/bin/sh\necho no Python\n", 30, "is no Python interpreter"),
        ("#!/bin/sh\necho broken >&2\nexit 3\n", 30, "ended with 3: broken"),
        ("#!/bin/sh\necho '[[3, 9], []]'\n", 30, "is Python 3.9; a worker needs 3.11 or newer"),
        ("#!/bin/sh\nexec sleep 300\n", 0.2, "gave no answer within 0.2 s"),
    ],
)
def test_what_is_no_interpreter(
    findings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, limit_s: float, words: str
) -> None:
    monkeypatch.setattr(preflight, "ASK_S", limit_s)
    finding = findings(Plain(ServiceSettings(python=script(tmp_path, text))))["it: interpreter"]
    assert not finding.ok
    assert words in finding.detail


def test_an_interpreter_that_is_not_there(findings: Any, tmp_path: Path) -> None:
    finding = findings(Plain(ServiceSettings(python=str(tmp_path / "none"))))["it: interpreter"]
    assert not finding.ok
    assert "is not there" in finding.detail
    (tmp_path / "text").write_text("not a program")
    finding = findings(Plain(ServiceSettings(python=str(tmp_path / "text"))))["it: interpreter"]
    assert "is no program that can be run" in finding.detail


def test_an_engine_without_its_packages_names_the_extra(findings: Any, tmp_path: Path) -> None:
    bare = script(tmp_path, f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    for engine, extra in (("openvino", "openvino"), ("transformers", "torch")):
        finding = findings(Plain(LLMSettings(model="m", engine=engine, python=bare)))["it: engine"]
        assert not finding.ok
        assert finding.detail.startswith(f"{engine} lacks ")
        assert finding.detail.endswith(f"{bare} -m pip install 'foreserve[{extra}]'")
    finding = findings(Plain(LLMSettings(model="m", python=bare)))["it: engine"]
    assert not finding.ok
    assert finding.detail == f"no engine is installed: {bare} -m pip install 'foreserve[openvino]'"


def test_engines_that_are_installed_here(findings: Any) -> None:
    for engine in ("openvino", "transformers"):
        assert findings(Plain(LLMSettings(model="m", engine=engine)))["it: engine"].ok
    assert findings(Plain(LLMSettings(model="m")))["it: engine"].detail == "openvino"
    chosen = Plain(LLMSettings(model="m"), engine_name="transformers")
    assert findings(chosen)["it: engine"].detail == "transformers"
    assert "it: engine" not in findings(Plain(LLMSettings(model="simulated")))


def test_the_extras_bring_what_is_looked_for() -> None:
    from importlib.metadata import requires

    asked = " ".join(requires("foreserve") or [])
    for extras in preflight.EXTRAS.values():
        for extra, modules in extras.items():
            for module in modules:
                package = {"PIL": "pillow"}.get(module, module.replace("_", "-"))
                assert any(
                    part.startswith(package) and f'extra == "{extra}"' in part for part in requires("foreserve") or []
                ), f"{package} of {extra} in {asked}"


# --- the machine


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        yield server.getsockname()[1]


def test_a_port_in_use(taken: int) -> None:
    finding = port(ServerSettings(port=taken))
    assert not finding.ok
    assert finding.detail == "in use; choose another one with --port, or 0 for any that is free"


def test_a_free_port_stays_free(taken: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        free = other.getsockname()[1]
    for _ in range(2):
        assert port(ServerSettings(port=free)) == Finding(ok=True, what=f"port {free}", detail="free at 127.0.0.1")


def test_hosts_that_cannot_be() -> None:
    assert "has no address" in port(ServerSettings(host="no.such.host.invalid", port=0)).detail
    assert "not an address of this machine" in port(ServerSettings(host="192.0.2.1", port=0)).detail


def test_folders(tmp_path: Path) -> None:
    assert folder("f", tmp_path / "a" / "b", "F").ok
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("x")
    wrong = folder("f", tmp_path / "file" / "b", "F")
    assert not wrong.ok
    assert "is a file, not a folder; another one: F" in wrong.detail


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot be written" in folder("f", tmp_path / "locked" / "b", "F").detail


RANGE: Any = {"replicas": (1, 2)}


@pytest.mark.parametrize(
    ("what", "words", "said"),
    [
        ("policy", {"policy": "hrn"}, "service 'it': policy: no batch policy is called 'hrn'; did you mean 'hrrn'?"),
        ("policy", {"policy": "fixed", "policy_options": {"size": 0}}, "service 'it': policy fixed: `size` is 0"),
        (
            "policy",
            {"policy_options": {"aging": 1}},
            "service 'it': policy_options.aging: unknown option for policy 'fcfs'",
        ),
        ("placement", {"placement": "nowhere"}, "service 'it': placement: no placement is called 'nowhere'"),
        (
            "admission",
            {"queue": QueueSettings(admission="bound")},
            "service 'it': queue.admission: no admission is called 'bound'",
        ),
        (
            "scaling",
            {**RANGE, "scaling": ScalingSettings(policy="hybird")},
            "service 'it': scaling.policy: no scaling policy is called 'hybird'; did you mean 'hybrid'?",
        ),
        (
            "scaling",
            {**RANGE, "scaling": ScalingSettings(policy_options={"targets": 1})},
            "service 'it': scaling.policy_options.targets: unknown option for policy 'hybrid'; did you mean 'target'?",
        ),
        (
            "forecaster",
            {**RANGE, "scaling": ScalingSettings(forecaster="last")},
            "service 'it': scaling.forecaster: no forecaster is called 'last'",
        ),
    ],
)
def test_what_could_not_be_wired_is_found_in_the_words_of_serving(
    findings: Any, what: str, words: Any, said: str
) -> None:
    kind: Any = Plain(ServiceSettings(**words))
    wrong = {name: finding for name, finding in findings(kind).items() if not finding.ok}
    assert list(wrong) == [f"it: {what}"]
    assert wrong[f"it: {what}"].detail.startswith(said)
    with pytest.raises(ConfigError) as caught:
        App(it=kind, state={"history": False}).run(InlineLauncher())
    assert str(caught.value) == wrong[f"it: {what}"].detail


def test_scaling_that_is_well_is_told(findings: Any) -> None:
    made = findings(Plain(ServiceSettings(replicas=(0, 3), scaling=ScalingSettings(policy="reactive"))))
    assert made["it: scaling"] == Finding(ok=True, what="it: scaling", detail="reactive, 0 to 3 replicas")


def test_a_scaling_command_must_be_there(findings: Any, tmp_path: Path) -> None:
    def found(*command: str) -> dict[str, Finding]:
        scaling: Any = {"command": list(command)}
        kind = Upstream(["http://127.0.0.1:9"], replicas=(1, 2), scaling=scaling)
        return {name: each for name, each in findings(kind).items() if "scaling" in name}

    plain = tmp_path / "scale-it.sh"
    plain.write_text("#!/bin/sh\n")
    for wrong in ("no-such-program-anywhere", str(tmp_path / "away"), str(plain)):
        finding = found(wrong, "{wanted}")["it: scaling command"]
        assert not finding.ok
        assert f"{wrong!r} is no program that can be run" in finding.detail
    plain.chmod(0o755)
    assert [each.ok for each in found(str(tmp_path / "scale-{service}.sh")).values()] == [True]
    assert [each.ok for each in found(sys.executable, "x.py").values()] == [True]


@pytest.mark.parametrize(
    ("replicas", "machine", "said"),
    [
        (2, {"replicas": 1}, "machine.replicas is 1, and the services' least numbers come to 2 (it 2)"),
        ((1, 2), {"memory_gb": 2}, "machine.memory_gb is 2, and the services' least numbers (it 1) take about 3"),
        ((0, 2), {"memory_gb": 2}, "machine.memory_gb is 2: there is no room for one of it, which takes 3 GiB"),
        ((0, 2), {"memory_gb": 4, "replicas": 1}, ""),
    ],
)
def test_a_machine_without_room_is_found(findings: Any, replicas: Any, machine: Any, said: str) -> None:
    made = findings(Plain(ServiceSettings(replicas=replicas), memory_bytes=lambda: 3 * GIB), machine=machine)
    if not said:
        assert "machine" not in made
        return
    assert not made["machine"].ok
    assert made["machine"].detail.startswith(said)
