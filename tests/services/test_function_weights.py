"""Weights as they are declared: what each is taken for, from where, and what is told when it is not there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from foreserve import App, preflight
from foreserve.core import WeightsRef
from foreserve.errors import ConfigError
from foreserve.services.function import Function
from foreserve.services.function_weights import weights_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "shop.py"
    made.write_text("def f(): ...\n")
    return made


def refs(file: Path, weights: Any) -> list[tuple[str, str, str]]:
    kind = Function(f"{file}:f", weights=weights)
    return [(ref.name, ref.kind, ref.source) for ref in kind.engines()[0].weights]


def test_paths_addresses_and_loaders(file: Path):
    folder = file.parent
    assert refs(file, "w.safetensors") == [("weights", "file", f"{folder}/w.safetensors")]
    assert refs(file, "/abs/w.safetensors") == [("weights", "file", "/abs/w.safetensors")]
    assert refs(file, {"a": "https://x.org/w", "b": {"source": "sub/w"}}) == [
        ("a", "uri", "https://x.org/w"),
        ("b", "file", f"{folder}/sub/w"),
    ]
    assert refs(file, {"a": "package.loaders:load", "b": "loaders.py:load.all"}) == [
        ("a", "loader", "package.loaders:load"),
        ("b", "loader", f"{folder}/loaders.py:load.all"),
    ]


def test_of_a_module_paths_are_seen_from_here():
    kind = Function("json:dumps", weights="w.safetensors")
    assert weights_of(kind.settings) == (WeightsRef(name="weights", source=str(Path.cwd() / "w.safetensors")),)


def test_what_the_engine_is_told(file: Path):
    options = Function(f"{file}:f", weights="w", batch=4, timeout_s=2.0).engines()[0].options
    assert options == {"target": f"{file}:f", "batch": 4, "weights": "weights", "timeout_s": 2.0}
    spec = Function(f"{file}:f", weights={"a": "w", "b": "v"}, memory_mb=0.5, imports=["torch"]).engines()[0]
    assert spec.options["weights"] == ["a", "b"]
    assert (spec.memory_bytes, spec.imports) == (2**19, ("foreserve.engines.python", "torch"))


def test_what_its_file_imports_is_imported_beforehand(file: Path):
    file.write_text("import json, msgspec\nfrom numpy import array\ndef f(): ...\n")
    imports = Function(f"{file}:f", batch=2).engines()[0].imports
    assert imports == ("foreserve.engines.python_batched", "msgspec", "numpy")
    assert Function(f"{file}:f", imports=[]).engines()[0].imports == ("foreserve.engines.python",)


def test_what_is_not_there_is_told_before_anything_starts(file: Path):
    kind = Function(f"{file}:f", weights={"ranker": "w.safetensors"})
    for check in (kind.check, kind.prepare):
        with pytest.raises(ConfigError, match=r"weights\.ranker: .*w\.safetensors is not there; valid: a safetensors"):
            check()
    findings = preflight.check(App(f=kind, state={"history": False}))
    assert any(not each.ok and "w.safetensors is not there" in each.detail for each in findings)
    (file.parent / "w.safetensors").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        kind.check()
    with pytest.raises(ConfigError, match=r"weights: .*loaders\.py is not there"):
        Function(f"{file}:f", weights="loaders.py:load").check()
    Function(f"{file}:f", weights="package.loaders:load").check()


def test_contents_that_differ_are_told(file: Path):
    (file.parent / "w").write_bytes(b"abc")
    right = hashlib.sha256(b"abc").hexdigest()
    Function(f"{file}:f", weights={"a": {"source": "w", "sha256": right.upper()}}).check()
    with pytest.raises(ConfigError, match=rf"weights\.a: the sha256 of .*/w is {right}, not 0000"):
        Function(f"{file}:f", weights={"a": {"source": "w", "sha256": "0" * 64}}).check()


def test_addresses_are_only_taken_where_the_app_allows_them():
    kind = Function("json:dumps", weights="https://models.example.org/ranker/w.safetensors")
    with pytest.raises(ConfigError, match=r"'f': weights: https://models.* is not allowed; `runtime.sources`: none"):
        App(f=kind)
    with pytest.raises(ConfigError, match=r"`runtime.sources`: https://other.example.org/"):
        App(f=kind, runtime={"sources": ["https://other.example.org/"]})
    App(f=kind, runtime={"sources": ["https://models.example.org/ranker/"]})


def test_two_functions_at_one_path_are_told():
    one, two = (Function("json:dumps", route="/same") for _ in range(2))
    with pytest.raises(ConfigError, match=r"'two': route: /same is that of 'one' already"):
        App(one=one, two=two)
