"""The documentation against the code: every setting is there, every link leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.main import get_command

from foreserve import settings
from foreserve.cli.main import app
from foreserve.simulation.figures import Series as SimulationSeries
from foreserve.simulation.figures import ServiceFigures, Tally
from foreserve.traces.open import FORMATS
from foreserve.traces.row import Header, TraceRow
from foreserve.traces.statistics import Series as TraceSeries
from foreserve.traces.statistics import Statistics

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STRUCTS = [
    struct
    for struct in vars(settings).values()
    if isinstance(struct, type)
    and issubclass(struct, settings.Settings)
    and struct not in (settings.Settings, settings.AppSettings, settings.Environment)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links {target}"


def written(field: msgspec.structs.FieldInfo) -> str:
    """A default as the page has it."""
    if field.required:
        return "required"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if isinstance(value, msgspec.Struct):
        return "see below"
    return "none" if value is None else f"`{value}`"


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_setting_is_told_with_its_default(struct: type[msgspec.Struct]):
    text = (ROOT / "docs" / "settings.md").read_text()
    common = {field.encode_name for field in msgspec.structs.fields(settings.ServiceSettings)}
    for field in msgspec.structs.fields(struct):
        if struct is settings.ServiceSettings or field.encode_name not in common:
            row = f"| `{field.encode_name}` | {written(field)} |"
            assert row in text, f"docs/settings.md lacks: {row}"


def commands(group: Any, name: str = "foreserve") -> Iterator[tuple[str, Any]]:
    """Each command by its name, those of groups too."""
    for word, command in group.commands.items():
        yield f"{name} {word}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")


def test_every_option_of_the_command_line_has_help():
    found = dict(commands(get_command(app)))
    assert {"foreserve serve", "foreserve trace record"} <= set(found)
    for name, command in found.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", "") or parameter.name == "help", f"{name} {parameter.name}"


@pytest.mark.parametrize("file", [*PAGES, *sorted((ROOT / "src").rglob("*.py"))], ids=lambda file: file.name)
def test_pages_that_are_named_are_there(file: Path):
    for page in re.findall(r"\bdocs/[\w./-]+\.md\b", file.read_text()):
        assert (ROOT / page).exists(), f"{file.name} names {page}"


@pytest.mark.parametrize("struct", [Tally, SimulationSeries, ServiceFigures, Statistics, TraceSeries])
def test_every_figure_is_in_the_glossary(struct: type[msgspec.Struct]):
    text = (ROOT / "docs" / "metrics.md").read_text()
    of_their_own = {"tally", "tenants", "series", "name", "epoch"}
    for field in msgspec.structs.fields(struct):
        assert field.name in of_their_own or f"`{field.name}`" in text, f"docs/metrics.md lacks {field.name}"


def test_every_field_of_a_trace_is_told():
    text = (ROOT / "docs" / "traces.md").read_text()
    for field in (*msgspec.structs.fields(TraceRow), *msgspec.structs.fields(Header)):
        assert f"`{field.name}`" in text or f'"{field.name}"' in text, f"docs/traces.md lacks {field.name}"
    for name in FORMATS:
        assert f"| `{name}` |" in text
