from __future__ import annotations

import importlib
import sys
import types

import pytest

from foreserve.runtime import later
from foreserve.runtime.later import Later


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """On the path; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


async def test_what_is_imported_since_in_its_order(folder, monkeypatch):
    (folder / "later_pack").mkdir()
    (folder / "later_pack" / "__init__.py").write_text("import later_alone")
    (folder / "later_pack" / "part.py").write_text("")
    (folder / "later_alone.py").write_text("")
    (folder / "later_before.py").write_text("")
    importlib.import_module("later_before")
    since = Later()
    monkeypatch.setenv("LATER_SET", "1")
    importlib.import_module("later_pack.part")
    told = since.told()
    assert told.modules == ("later_pack", "later_alone", "later_pack.part")
    assert told.variables.keys() == {"LATER_SET"}
    assert since not in sys.meta_path
    assert told.seconds >= 0


async def test_only_what_another_process_would_find(folder, tmp_path_factory, monkeypatch):
    beside, here = tmp_path_factory.mktemp("beside"), tmp_path_factory.mktemp("here")
    (folder / "later_good.py").write_text("")
    (folder / "later_renamed.py").write_text("")
    (beside / "later_own.py").write_text("")
    (here / "later_here.py").write_text("")
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(here)
    since = Later()
    monkeypatch.syspath_prepend(beside)
    for name in ("later_good", "later_own", "later_here", "later_renamed"):
        importlib.import_module(name)
    sys.modules["later_other_name"] = sys.modules["later_renamed"]
    sys.modules["later_made"] = types.ModuleType("later_made")
    sys.modules["later_object"] = object()  # type: ignore[assignment]
    assert since.told().modules == ("later_good", "later_renamed")


async def test_bounds(folder, monkeypatch):
    for at in range(5):
        (folder / f"later_{at}.py").write_text("")
    since = Later()
    for at in range(5):
        importlib.import_module(f"later_{at}")
    assert len(since.told().modules) == 5
    monkeypatch.setattr(later, "MOST_CHARACTERS", 24)
    assert since.told().modules == ("later_0", "later_1")
    monkeypatch.setattr(later, "MOST_MODULES", 1)
    since = Later()
    for at in range(2):
        del sys.modules[f"later_{at}"]
        importlib.import_module(f"later_{at}")
    assert since.told().modules == ("later_0",)
