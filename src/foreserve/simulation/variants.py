"""The same app with other settings: what `--set` and `--compare` say, checked as an app file is, in its own words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from foreserve.app import App
from foreserve.appfile import load_app_file
from foreserve.chosen import make_admission, make_placement, make_policy, make_scaling_policy, placement_name
from foreserve.errors import ConfigError
from foreserve.foresight.workload import offered
from foreserve.parsing import parse
from foreserve.registry import choices
from foreserve.services.served import policy_name
from foreserve.settings import AppSettings
from foreserve.yamlfile import Document


def assignments(words: Iterable[str]) -> dict[str, Any]:
    """`services.chat.replicas=4` as a dotted key and a value, which is read as YAML. The last of one key counts."""
    found: dict[str, Any] = {}
    for each in words:
        key, equals, value = each.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {each}: write KEY=VALUE, as in --set services.chat.replicas=4")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {key}: {value!r} is no value; quote what YAML would read otherwise") from None
    return found


MOST_VARIED: Final = 16
"""Runs side by side that can still be read."""


def varied(words: str) -> tuple[str, list[Any]]:
    """`chat.replicas=1,2,4` as a key and its values, each read as YAML. Raises ConfigError."""
    key, equals, values = words.partition("=")
    try:
        found = yaml.safe_load(f"[{values}]") if equals and key.strip() else []
    except yaml.YAMLError:
        found = []
    if not 1 <= len(found) <= MOST_VARIED:
        raise ConfigError(
            f"--vary {words}: write KEY=VALUE,VALUE, as in --vary chat.replicas=1,2,4 (1 to {MOST_VARIED} of them)"
        )
    return key.strip(), found


def changed(app: App, changes: Mapping[str, Any], where: str) -> App:
    """`app` with `changes` made to it, which stays as it is. Keys are dotted or nested, values plain.

    A key begins with `services.`, with a service's name, or with `server`, `state` or `machine`. Mappings are merged,
    all else is replaced; options of a policy go with the policy, and `scaling` where the number of replicas is fixed.
    `where` begins every error. Raises ConfigError.
    """
    services: dict[str, dict[str, Any]] = {}
    own: dict[str, Any] = {name: {} for name in AppSettings.__struct_fields__}
    placed: dict[str, str] = {}
    for key, value, said in _flat(app, changes, where):
        head, _, rest = key
        target = own if head in own else services
        placed.setdefault(head, said)
        _put(target.setdefault(head, {}), rest, value, f"{where}{said}")
    kinds: dict[str, Any] = dict(app.services)
    for name, words in services.items():
        kinds[name] = _with(app.services[name], words, f"{where}{placed[name]}")
    settings = {
        name: parse(_merged(msgspec.to_builtins(getattr(app.settings, name)), words), _type(name), f"{where}{name}")
        for name, words in own.items()
    }
    return App(**settings, **kinds)


def _type(name: str) -> Any:
    return next(field.type for field in msgspec.structs.fields(AppSettings) if field.name == name)


def _flat(app: App, changes: Mapping[str, Any], where: str) -> Iterable[tuple[tuple[str, str, list[str]], Any, str]]:
    """Each change as ((service or part, "", the rest of its key), value, how its first part was written)."""
    for key, value in changes.items():
        if not isinstance(key, str):
            raise ConfigError(f'{where}the key {key!r} is not text; write "{key}"')
        if key == "services":
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}services: expected services by name; valid: {', '.join(app.services)}")
            for name, words in value.items():
                yield from _flat_service(app, str(name), words, where, "services.")
        elif key.startswith("services."):
            yield from _flat_service(app, key.removeprefix("services."), value, where, "services.")
        elif (head := key.partition(".")[0]) in AppSettings.__struct_fields__:
            yield (head, "", key.split(".")[1:]), value, head
        else:
            yield from _flat_service(app, key, value, where, "")


def _flat_service(
    app: App, key: str, value: Any, where: str, before: str
) -> Iterable[tuple[tuple[str, str, list[str]], Any, str]]:
    # A service's name may have dots: the longest that fits is meant.
    fitting = [name for name in app.services if key == name or key.startswith(f"{name}.")]
    if not fitting:
        head = key.partition(".")[0]
        valid = [*app.services] if before else ["services", *app.services, *AppSettings.__struct_fields__]
        raise ConfigError(f"{where}{before}{key}: there is no {head!r} in the app{choices(head, valid)}")
    name = max(fitting, key=len)
    rest = key[len(name) + 1 :]
    yield (name, "", rest.split(".") if rest else []), value, f"{before}{name}"


def _put(into: dict[str, Any], path: list[str], value: Any, where: str) -> None:
    """Set what a path of keys names."""
    if not path:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {value!r}: expected keys and values, as in {where}.replicas=2")
        into.update(_merged(into, value))
        return
    for key in path[:-1]:
        inner = into.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{where}.{'.'.join(path)}: {key!r} was given a value of its own before")
        into = inner
    into[path[-1]] = value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **base,
        **{
            key: _merged(base[key], value)
            if isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
            else value
            for key, value in over.items()
        },
    }


def _with(kind: Any, words: dict[str, Any], where: str) -> Any:
    settings = getattr(kind, "asked", kind.settings)
    base = msgspec.to_builtins(settings)
    if "policy" in words and words["policy"] != base["policy"]:
        base["policy_options"] = {}
    scaling = words.get("scaling")
    if isinstance(scaling, Mapping) and scaling.get("policy", base["scaling"]["policy"]) != base["scaling"]["policy"]:
        base["scaling"]["policy_options"] = {}
    if isinstance(words.get("replicas"), int):
        del base["scaling"]  # with a fixed number there is nothing that it could do
    return type(kind).from_settings(parse(_merged(base, words), type(settings), where), where)


def compared(app: App, path: str) -> App:
    """What a file says: a whole app, or changes to `app`. Raises ConfigError that names the file and the line."""
    file = Path(path.rpartition(":")[0] or path) if ".py:" in path else Path(path)
    if file.suffix not in (".yaml", ".yml"):
        return load_app_file(path)
    document = Document.read(file)
    if not isinstance(document.data, Mapping) or not document.data:
        raise ConfigError(f"{file}: it says nothing; write changes, as in `chat: {{replicas: 2}}`, or a whole app file")
    services = document.data.get("services")
    if isinstance(services, Mapping) and all(
        isinstance(each, Mapping) and "kind" in each for each in services.values()
    ):
        return load_app_file(path)
    with document.lines_in_errors():
        return changed(app, document.data, f"{document.where}: ")


def check_policies(kinds: Mapping[str, Any]) -> None:
    """Whether every policy, scaling policy, forecaster, placement and admission can be made. Raises ConfigError."""
    for name, kind in kinds.items():
        policy = make_policy(name, policy_name(kind), kind.settings.policy_options)
        make_placement(name, placement_name(kind))
        make_admission(name, kind.settings.queue, policy)
        make_scaling_policy(name, kind.settings.scaling)
        if not isinstance(kind.settings.replicas, int):
            offered(kind.settings.scaling.forecaster, f"service {name!r}: scaling.forecaster")


def differences(settings: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The dotted keys in which these settings are not all alike, with the value of each; `None` where there is none."""
    flat = [_dotted(each) for each in settings]
    keys = dict.fromkeys(key for each in flat for key in each)
    return {
        key: [each.get(key) for each in flat] for key in keys if any(each.get(key) != flat[0].get(key) for each in flat)
    }


def _dotted(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found.update(_dotted(value, f"{before}{key}."))
        else:
            found[f"{before}{key}"] = value
    return found
