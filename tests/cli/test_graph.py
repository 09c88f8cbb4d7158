from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from foreserve.cli.main import app

APP = Path(__file__).resolve().parents[1] / "services" / "graph_app.py"


def test_check_says_what_comes_apart_and_what_does_not() -> None:
    said = CliRunner().invoke(app, ["graph", "check", str(APP)])
    assert said.exit_code == 0, "the one that cannot asks for a full recompute"
    assert "net: can be taken apart" in said.output
    assert "2 layers; 1 are kept up to date" in said.output
    assert "layer 1: sum over node:to:node, width 4, changed by differences" in said.output
    assert "attending: cannot be taken apart" in said.output
    assert "layer 'layer' (TransformerConv)" in said.output
    assert "it is served by full recompute, as `mode` says" in said.output


def test_one_that_cannot_and_does_not_say_how_else_ends_the_check_with_1(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text(APP.read_text().replace('words(mode="recompute")', "words()"))
    said = CliRunner().invoke(app, ["graph", "check", str(file)])
    assert said.exit_code == 1
    assert "attending: cannot be taken apart" in said.output
    assert 'mode="recompute"' in said.output


def test_an_app_without_graphs_is_told(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text(
        "import foreserve\n\n@foreserve.function\ndef f() -> int:\n    return 1\n\napp = foreserve.App(f=f)\n"
    )
    said = CliRunner().invoke(app, ["graph", "check", str(file)])
    assert said.exit_code == 1
    assert "has no graph service" in said.output
