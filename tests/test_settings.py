from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from foreserve.errors import ConfigError
from foreserve.parsing import parse
from foreserve.settings import (
    Environment,
    FunctionSettings,
    LLMSettings,
    QueueSettings,
    ScalingSettings,
    ServerSettings,
    Settings,
    StateSettings,
    UpstreamSettings,
)

WHERE = "app.yaml: services.chat"


def words(data: Any, into: type = LLMSettings, where: str = WHERE) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(data, into, where)
    return str(caught.value)


def test_what_is_given_is_kept_and_the_rest_has_its_defaults() -> None:
    settings = parse({"model": "smollm2", "queue": {"max_waiting": 5}, "weights": "q8_0"}, LLMSettings, WHERE)
    assert settings == LLMSettings(model="smollm2", queue=QueueSettings(max_waiting=5), weights="q8_0")


def test_whole_numbers_pass_as_decimals_and_none_where_allowed() -> None:
    settings = parse({"model": "m", "deadline_s": 3, "weights": None, "threads": None}, LLMSettings, WHERE)
    assert settings.deadline_s == 3.0
    assert settings.weights is None


def test_a_struct_that_is_already_made_passes() -> None:
    queue = QueueSettings(max_waiting=7)
    assert parse({"model": "m", "queue": queue}, LLMSettings, WHERE).queue is queue
    assert parse(queue, QueueSettings, WHERE) == queue


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"modle": "m"}, f"{WHERE}.modle: unknown key 'modle'; did you mean 'model'? valid: replicas, launcher"),
        ({}, f"{WHERE}: missing key 'model'; LLMSettings needs it"),
        ({"model": 3}, f"{WHERE}.model is 3: expected str, got int"),
        ({"model": None}, f"{WHERE}.model is empty: expected str, got nothing"),
        ({"model": "m", "replicas": "two"}, f"{WHERE}.replicas is 'two': expected int or [least, most], got str"),
        ({"model": "m", "replicas": True}, f"{WHERE}.replicas is True: expected int or [least, most], got bool"),
        ({"model": "m", "replicas": 1.5}, f"{WHERE}.replicas is 1.5: expected int or [least, most], got float"),
        ({"model": "m", "threads": "4"}, f"{WHERE}.threads is '4': expected int, got str"),
        ({"model": "m", "replicas": [1]}, f"{WHERE}.replicas is [1]: expected int or [least, most]"),
        ({"model": "m", "replicas": [1, 2, 3]}, f"{WHERE}.replicas is [1, 2, 3]: expected int or [least, most]"),
        ({"model": "m", "replicas": -1}, f"{WHERE}: `replicas` is -1; it must be at least 0"),
        (
            {"model": "m", "weights": "q80"},
            f"{WHERE}.weights is 'q80'; did you mean 'q8_0'? valid: f16, q8_0, bf16, f32",
        ),
        ({"model": "m", "weights": 8}, f"{WHERE}.weights is 8; valid: f16, q8_0, bf16, f32"),
        (
            {"model": "m", "weights": ["f16"]},
            f"{WHERE}.weights is ['f16']; did you mean 'f16'? valid: f16, q8_0, bf16, f32",
        ),
        (
            {"model": "m", "launcher": "locl"},
            f"{WHERE}.launcher is 'locl'; did you mean 'local'? valid: local, inline",
        ),
        ({"model": "m", "launcher": None}, f"{WHERE}.launcher is empty; valid: local, inline"),
        (
            {"model": "m", "queue": {"max_request": 1}},
            f"{WHERE}.queue.max_request: unknown key 'max_request'; valid: max_waiting, max_wait_s, admission",
        ),
        ({"model": "m", "queue": {"max_waiting": 0}}, f"{WHERE}.queue: `max_waiting` is 0; it must be at least 1"),
        (
            {"model": "m", "queue": None},
            f"{WHERE}.queue is empty: expected keys and values; valid: max_waiting, max_wait_s, admission",
        ),
        (
            {"model": "m", "queue": 5},
            f"{WHERE}.queue is 5: expected keys and values; valid: max_waiting, max_wait_s, admission",
        ),
        ({"model": "m", "env": {"A": 1}}, f"{WHERE}.env.A is 1: expected str, got int"),
        ({"model": "m", "env": {1: "x"}}, f'{WHERE}.env: the key 1 is not text; write "1"'),
        ({"model": "m", "env": ["A=1"]}, f"{WHERE}.env is ['A=1']: expected keys and values, got array"),
        ({8000: 1}, f'{WHERE}: the key 8000 is not text; write "8000"'),
        ("smollm2", f"{WHERE} is 'smollm2': expected keys and values; valid: replicas, launcher"),
        ([1], f"{WHERE} is [1]: expected keys and values; valid: replicas"),
    ],
)
def test_what_does_not_fit_names_the_place_and_the_choices(data: Any, expected: str) -> None:
    assert words(data).startswith(expected)


def test_lists_name_the_position() -> None:
    where = "app.yaml: server"
    assert words({"api_keys": [{"key": "a"}, {"tenant": "x"}]}, ServerSettings, where) == (
        "app.yaml: server.api_keys[1]: missing key 'key'; ApiKey needs it"
    )
    assert words({"api_keys": "secret"}, ServerSettings, where) == (
        "app.yaml: server.api_keys is 'secret': expected array, got str"
    )
    assert words({"urls": ["http://a", 3]}, UpstreamSettings).startswith(f"{WHERE}.urls[1] is 3: expected str")
    assert "urls[0]" in words({"urls": [None]}, UpstreamSettings)


def test_a_page_of_text_is_not_repeated() -> None:
    message = words({"model": "m", "replicas": "x" * 5000})
    assert len(message) < 200


@pytest.mark.parametrize(
    ("data", "into", "part"),
    [
        ({"urls": []}, UpstreamSettings, "`urls` names no server"),
        ({"urls": ["localhost:1"]}, UpstreamSettings, "'localhost:1' is not an http:// or https:// address"),
        ({"target": "rank"}, FunctionSettings, 'valid: "module:name" or "file.py:name"'),
        ({"port": 70000}, ServerSettings, "`port` is 70000; valid: 0 to 65535"),
        ({"api_keys": [{"key": ""}]}, ServerSettings, "`key` is empty or blank"),
        ({"api_keys": [{"key": "a"}, {"key": " \t"}]}, ServerSettings, "api_keys[1]: `key` is empty or blank"),
        ({"max_connections": 0}, ServerSettings, "`max_connections` is 0; it must be at least 1"),
        ({"body_s": 0}, ServerSettings, "`body_s` is 0.0; it must be above 0"),
        ({"max_body_bytes": 1}, ServerSettings, "`max_body_bytes` is 1; it must be at least 1024"),
        ({"model": "m", "deadline_s": 0}, LLMSettings, "`deadline_s` is 0.0; it must be above 0"),
        ({"model": "m", "kv_cache_gb": -1}, LLMSettings, "`kv_cache_gb` is -1.0; it must be above 0"),
        ({"history": "yes"}, StateSettings, "history is 'yes': expected bool, got str"),
    ],
)
def test_bounds_that_a_setting_has_of_itself(data: dict[str, Any], into: type, part: str) -> None:
    assert part in words(data, into)


class Leaf(Settings, frozen=True, kw_only=True):
    size: int = 1


class Mixed(Settings, frozen=True, kw_only=True):
    either: Leaf | str = "plain"
    many: dict[str, list[Leaf]] = {}  # noqa: RUF012
    mode: Literal["a", "b"] | int = "a"


def test_unions_and_nested_containers() -> None:
    assert parse({"either": {"size": 2}}, Mixed, "x").either == Leaf(size=2)
    assert parse({"either": "text", "mode": 3}, Mixed, "x") == Mixed(either="text", mode=3)
    assert words({"either": {"sise": 2}}, Mixed, "x").startswith("x.either.sise: unknown key")
    assert words({"many": {"k": [{"size": 1}, {"size": "l"}]}}, Mixed, "x").startswith("x.many.k[1].size is 'l'")
    assert words({"mode": "c"}, Mixed, "x").startswith("x.mode is 'c'")


def test_settings_cannot_be_changed_or_invented() -> None:
    with pytest.raises(AttributeError):
        ServerSettings().port = 1  # type: ignore[misc]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"nonsense": 1}, ServerSettings)


def test_the_environment_is_read_in_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORESERVE_CACHE", str(tmp_path / "c"))
    monkeypatch.setenv("FORESERVE_STATE", str(tmp_path / "s"))
    monkeypatch.setenv("FORESERVE_LOG", "debug")
    assert Environment.read() == Environment(cache=tmp_path / "c", state=tmp_path / "s", log_level="DEBUG")
    monkeypatch.delenv("FORESERVE_CACHE")
    assert Environment.read().cache == Path.home() / ".cache" / "foreserve"


@pytest.mark.parametrize(("given", "read"), [(False, "off"), ("off", "off")])
def test_the_word_off_may_go_without_quotes_in_yaml(given: Any, read: str) -> None:
    settings = parse({"model": "m", "exact": False, "foresight": {"predictor": given}}, LLMSettings, WHERE)
    assert settings.foresight.predictor == read
    assert settings.exact is False


def test_a_yes_or_no_is_no_word_where_it_is_no_choice() -> None:
    assert words({"model": "m", "foresight": {"predictor": True}}).startswith(f"{WHERE}.foresight.predictor is True;")
    assert words({"model": "m", "weights": False}).startswith(f"{WHERE}.weights is False;")


@pytest.mark.parametrize(
    ("data", "into", "said"),
    [
        (
            {"model": "m", "scaling": {"policy": "reactive"}},
            LLMSettings,
            "`scaling.policy` does nothing with a fixed number of replicas; "
            "write `replicas: [least, most]`, as in [1, 4]",
        ),
        (
            {"model": "m", "replicas": 6, "scaling": {"idle_s": 9, "drain_s": 1}},
            LLMSettings,
            "`scaling.idle_s`, `scaling.drain_s` do nothing with a fixed number of replicas; "
            "write `replicas: [least, most]`, as in [1, 6]",
        ),
        (
            {"model": "m", "replicas": [1, 2], "scaling": {"command": ["up"]}},
            LLMSettings,
            "`scaling.command` is told how many servers an `upstream` wants",
        ),
        (
            {"model": "m", "scaling": {"webhook": "http://h"}},
            LLMSettings,
            "`scaling.webhook` is told how many servers an `upstream` wants",
        ),
        ({"urls": ["http://a"], "replicas": 3}, UpstreamSettings, "`replicas` is 3; `urls` tell how many there are"),
        (
            {"urls": ["http://a"], "scaling": {"command": ["up"]}},
            UpstreamSettings,
            "`scaling.command` does nothing with a fixed number of replicas",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(data: Any, into: type, said: str):
    assert words(data, into).startswith(f"{WHERE}: {said}")


def test_scaling_that_names_no_program_or_a_key_for_nobody_is_refused():
    assert "`command` names no program" in words({"command": [" "]}, ScalingSettings)
    assert "no `webhook` to show" in words({"webhook_key_env": "KEY"}, ScalingSettings)


def test_what_is_as_usual_may_be_written_with_a_fixed_number():
    parse({"model": "m", "replicas": 2, "scaling": {"policy": "hybrid"}}, LLMSettings, WHERE)
    parse({"urls": ["http://a"], "scaling": {"drain_s": 5}}, UpstreamSettings, WHERE)
