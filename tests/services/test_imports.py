from pathlib import Path

from foreserve.services.imports import MOST_IMPORTS, imports_of


def of(folder: Path, code: str, python: str | None = None) -> tuple[str, ...]:
    file = folder / "app.py"
    file.write_text(code)
    return imports_of(file, python)


def test_what_is_installed_and_runs_on_import(tmp_path):
    code = """
import os, numpy.linalg as la
from typing import TYPE_CHECKING
import foreserve
from msgspec import Struct
from . import relative
try:
    import yaml
except ImportError:
    import not_installed_anywhere
if TYPE_CHECKING:
    import pytest
if len("x"):
    import rich.table

class Rank:
    import typer

def run():
    import uvicorn

raise SystemExit("it is never run")
"""
    assert of(tmp_path, code) == ("numpy.linalg", "msgspec", "yaml", "rich.table", "typer")


def test_another_interpreter_has_other_packages(tmp_path):
    assert of(tmp_path, "import vllm, json, numpy") == ("numpy",)
    assert of(tmp_path, "import vllm, json, numpy", "/envs/x/bin/python") == ("vllm", "numpy")


def test_files_beside_it_are_followed_and_not_named(tmp_path):
    (tmp_path / "model.py").write_text("import numpy\nimport app\nimport package.part")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("import msgspec")
    (tmp_path / "yaml.py").write_text("import rich")  # hides the installed one
    assert of(tmp_path, "import model, yaml") == ("numpy", "rich", "msgspec")


def test_a_file_that_cannot_be_read_has_none(tmp_path):
    assert of(tmp_path, "import numpy\ndef broken(:") == ()
    assert of(tmp_path, "import numpy\n\0") == ()
    assert imports_of(tmp_path / "missing.py") == ()


def test_the_number_is_bounded(tmp_path):
    names = [f"package_{number}" for number in range(MOST_IMPORTS + 9)]
    assert of(tmp_path, f"import {', '.join(names)}", "python") == tuple(names[:MOST_IMPORTS])
