"""Runs that share a trace and a seed: each an app and its profiles, all checked before the first begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from foreserve.app import App
from foreserve.engines.profile import EngineProfile
from foreserve.errors import ConfigError
from foreserve.registry import choices
from foreserve.rows import state_folder
from foreserve.simulation.adapted import adapted
from foreserve.simulation.figures import Result
from foreserve.simulation.oracle import Oracle
from foreserve.simulation.profiles import profile_file, profile_for, read_profile
from foreserve.simulation.study import NoProfile, make_twins
from foreserve.simulation.survey import Survey
from foreserve.simulation.twin import can_be_simulated
from foreserve.simulation.variants import changed, check_policies, compared, differences


class Variant(msgspec.Struct, frozen=True, eq=False):
    """A run to come. `notes` say what its profiles leave open."""

    name: str
    app: App
    profiles: Mapping[str, EngineProfile]
    notes: Sequence[str]


def profiles_of(app: App, named: Sequence[str]) -> dict[str, EngineProfile]:
    """The profile of each service that can be simulated: as `service=file` names it, else the measured one.

    A file alone is the only service's. Services without one are left out. Raises ConfigError.
    """
    services = [n for n, kind in app.services.items() if can_be_simulated(kind)]
    files: dict[str, Path] = {}
    for each in named:
        service, equals, file = each.partition("=")
        if not equals and len(services) != 1:
            raise ConfigError(f"--profile {each}: write SERVICE=FILE; the services are {', '.join(services)}")
        if equals and service not in services:
            raise ConfigError(f"--profile {each}: no service {service!r} can be simulated{choices(service, services)}")
        files[service if equals else services[0]] = Path(file if equals else each)
    folder = state_folder(app.settings.state)
    found = {name: read_profile(files[name]) if name in files else profile_for(name, folder) for name in services}
    return {name: profile for name, profile in found.items() if profile is not None}


def files_read(app_file: str, files: Sequence[str], named: Sequence[str], app: App) -> list[Path]:
    """What `variants` reads: app files, changes and profiles, with those of the state folder."""
    folder = state_folder(app.settings.state)
    apps = [Path(each.rpartition(":")[0] if ".py:" in each else each) for each in (app_file, *files)]
    given = [Path(each.rpartition("=")[2]) for each in named]
    return [*apps, *given, *(profile_file(name, folder) for name in app.services)]


def variants(
    app: App,
    label: str,
    sets: Mapping[str, Any],
    files: Sequence[str],
    named: Sequence[str],
    vary: tuple[str, Sequence[Any]] | None = None,
) -> list[Variant]:
    """The app with what `sets` change, then as each of `files` has it. Raises ConfigError for whatever is wrong.

    `vary` is a key and its values: a run for each of them is in place of the app's own.

    A file's profiles are those of the app, adapted to its settings where these differ (see `adapted`).
    """
    measured = profiles_of(app, named)
    base = changed(app, sets, "--set ") if sets else app
    first = [(label, base)]
    if vary is not None:
        key, values = vary
        first = [(f"{key}={value}", changed(base, {key: value}, "--vary ")) for value in values]
    made: list[Variant] = []
    for name, one in [*first, *((Path(file).name, compared(base, file)) for file in files)]:
        own = {each: profile for each, profile in profiles_of(one, []).items() if each not in measured}
        profiles, notes = {**own}, list[str]()
        for each, profile in measured.items():
            if each in one.services:
                kept, told = adapted(each, profile, app.services[each].settings, one.services[each].settings)
                profiles[each] = kept
                notes += told
        notes += [f"{each}'s profile: {note}" for each, profile in profiles.items() for note in profile.notes]
        made.append(Variant(_unlike(name, [each.name for each in made]), one, profiles, notes))
    return made


def _unlike(name: str, others: Sequence[str]) -> str:
    return name if name not in others else next(n for i in range(2, 99) if (n := f"{name} ({i})") not in others)


def check(variant: Variant, seen: Survey) -> None:
    """Whether it can run on this trace. Raises ConfigError."""
    try:
        check_policies(make_twins(variant.app, variant.profiles, Oracle(), seen))
    except NoProfile as error:
        file = profile_file(error.service, state_folder(variant.app.settings.state))
        raise ConfigError(f"{variant.name}: {error} (looked for {file})") from None
    except ConfigError as error:
        raise ConfigError(f"{variant.name}: {error}") from None


def differing(results: Sequence[Result]) -> dict[str, list[Any]]:
    """The settings in which runs differ, with the value of each run."""
    return differences([result.settings for result in results])
