from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foreserve.app import App
from foreserve.errors import ConfigError
from foreserve.services.llm import LLM
from foreserve.services.upstream import Upstream
from foreserve.settings import ScalingSettings
from foreserve.simulation.variants import assignments, changed, check_policies, compared, differences


def app() -> App:
    services: dict[str, Any] = {
        "chat": LLM("simulated", policy="hrrn", policy_options={"aging": 2.0}, queue={"max_waiting": 9}),
        "chat.v2": LLM("simulated", replicas=2),
        "far": Upstream(["http://127.0.0.1:9"], engine_priority=True),
    }
    return App(server={"port": 9000}, **services)


def settings(app: App, name: str) -> Any:
    return app.services[name].settings


def test_values_are_read_as_yaml():
    told = assignments(["a.b=4", "c=[1, 2]", "d=on", "e=", "f=x=y", "a.b=5"])
    assert told == {"a.b": 5, "c": [1, 2], "d": True, "e": None, "f": "x=y"}


def test_dotted_and_nested_keys_are_the_same():
    dotted = changed(app(), {"services.chat.queue.max_waiting": 3, "far.max_running": 2, "server.port": 1}, "")
    nested = changed(
        app(),
        {"services": {"chat": {"queue": {"max_waiting": 3}}}, "far": {"max_running": 2}, "server": {"port": 1}},
        "",
    )
    for one in (dotted, nested):
        assert settings(one, "chat").queue.max_waiting == 3
        assert settings(one, "chat").queue.max_wait_s == 30.0
        assert settings(one, "far").max_running == 2
        assert one.settings.server.port == 1


def test_the_app_itself_stays_as_it_was():
    first = app()
    changed(first, {"chat.replicas": 7}, "")
    assert settings(first, "chat").replicas == 1


def test_a_name_with_a_dot_is_known():
    told = changed(app(), {"chat.v2.replicas": 5, "chat.replicas": 3}, "")
    assert (settings(told, "chat.v2").replicas, settings(told, "chat").replicas) == (5, 3)


def test_another_policy_begins_with_its_own_options():
    told = changed(app(), {"chat.policy": "fcfs"}, "")
    assert settings(told, "chat").policy_options == {}
    check_policies(told.services)
    same = changed(app(), {"chat.policy_options.aging": 3.0}, "")
    assert settings(same, "chat").policy_options == {"aging": 3.0}


def test_a_policy_with_options_that_do_not_fit_is_told():
    with pytest.raises(ConfigError, match=r"policy_options\.ageing: unknown option"):
        check_policies(changed(app(), {"chat.policy_options.ageing": 3.0}, "").services)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chat.queue": 4}, "x: chat.queue is 4: expected keys and values"),
        ({"talk.replicas": 4}, "x: talk.replicas: there is no 'talk' in the app"),
        ({"services": 4}, "x: services: expected services by name; valid: chat, chat.v2, far"),
        ({"chat": None}, "x: chat is None: expected keys and values"),
        ({"chat.replicas": -1}, "x: chat: `replicas` is -1; it must be at least 0"),
        ({4: 4}, "x: the key 4 is not text"),
        ({"chat.queue": 1, "chat.queue.max_waiting": 2}, "given a value of its own before"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(changes: Any, words: str):
    with pytest.raises(ConfigError) as told:
        changed(app(), changes, "x: ")
    assert words in str(told.value)


def test_a_file_is_changes_or_a_whole_app(tmp_path: Path):
    few = tmp_path / "few.yaml"
    few.write_text("chat: {replicas: 4}\nfar.max_running: 3\n")
    told = compared(app(), str(few))
    assert (settings(told, "chat").replicas, settings(told, "far").max_running) == (4, 3)
    whole = tmp_path / "whole.yaml"
    whole.write_text("services:\n  other: {kind: llm, model: simulated}\n")
    assert list(compared(app(), str(whole)).services) == ["other"]
    code = tmp_path / "whole.py"
    code.write_text(
        "import foreserve as fs\none = fs.App(a=fs.LLM('simulated'))\ntwo = fs.App(b=fs.LLM('simulated'))\n"
    )
    assert list(compared(app(), f"{code}:two").services) == ["b"]


def test_only_what_differs_is_told():
    one = {"chat": {"replicas": 1, "queue": {"max": 2}, "options": {}}}
    two = {"chat": {"replicas": 2, "queue": {"max": 2}, "options": {"a": 1}}}
    assert differences([one, two]) == {"chat.replicas": [1, 2], "chat.options": [{}, None], "chat.options.a": [None, 1]}
    assert differences([one, one]) == {}


def test_with_a_fixed_number_nothing_scales_and_options_go_with_their_policy():
    scaling: Any = {"window_s": 20.0, "policy": "hybrid", "policy_options": {"wait_s": 1.0}}
    first = App(chat=LLM("simulated", replicas=(1, 4), scaling=scaling), machine={"replicas": 5})
    fixed = settings(changed(first, {"chat.replicas": 2}, ""), "chat")
    assert (fixed.replicas, fixed.scaling) == (2, ScalingSettings())
    other = settings(changed(first, {"chat.scaling.policy": "reactive"}, ""), "chat").scaling
    assert (other.policy, other.policy_options, other.window_s) == ("reactive", {}, 20.0)
    same = settings(changed(first, {"chat.scaling.policy": "hybrid"}, ""), "chat").scaling
    assert same.policy_options == {"wait_s": 1.0}
    with pytest.raises(ConfigError, match=r"`scaling.policy` does nothing with a fixed number"):
        changed(first, {"chat": {"replicas": 2, "scaling": {"policy": "reactive"}}}, "")


def test_the_machine_stays_and_can_be_changed():
    first = App(chat=LLM("simulated", replicas=(1, 4)), machine={"replicas": 5})
    assert changed(first, {"chat.max_running": 2}, "").settings.machine.replicas == 5
    assert changed(first, {"machine.replicas": 3}, "").settings.machine.replicas == 3


@pytest.mark.parametrize(("key", "value"), [("policy", "hybird"), ("forecaster", "lst_value")])
def test_scaling_that_cannot_be_made_is_told_before_anything_runs(key: str, value: str):
    told = changed(App(chat=LLM("simulated", replicas=(1, 4))), {f"chat.scaling.{key}": value}, "")
    with pytest.raises(ConfigError, match=rf"service 'chat': scaling\.{key}: .* is called '{value}'"):
        check_policies(told.services)
