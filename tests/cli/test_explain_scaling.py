from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from foreserve.cli.explain_scaling import sentence, sentences
from foreserve.cli.main import app
from foreserve.loads import LoadStore
from foreserve.scaling import ScalingDecision

AT = datetime(2026, 3, 2, 14, 3, 20).timestamp()
WHY = (
    "forecast 5,120 output tokens/s for the 60 s that begin in 40 s (p80, gradient boosting) against 1,900 per "
    "replica; nothing waits"
)


def decision(**words: Any) -> ScalingDecision:
    told: dict[str, Any] = {"service": "chat", "at": AT, "active": 2, "wanted": 3, "granted": 3, "why": WHY}
    return ScalingDecision(**{**told, **words})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = LoadStore.open(tmp_path, {})
    for n in range(30):
        store.decided(decision(at=AT + n, figures={"need": 2.7}))
    store.decided(decision(service="mood", at=AT + 60, active=1, wanted=0, granted=0, why="nothing has come for 300 s"))
    store.close()
    return tmp_path


def explain(folder: Path, *args: str) -> Result:
    return CliRunner().invoke(app, ["explain", "--scaling", "--state", str(folder), *args])


def test_a_decision_in_words():
    assert sentence(decision()) == f"14:03:20 chat 2 -> 3: {WHY}"
    assert sentence(decision(active=3)) == f"14:03:20 chat stays 3: {WHY}"
    shared = decision(granted=2, shared="the machine is shared: mood 2 need theirs more")
    assert sentence(shared).startswith(
        "14:03:20 chat stays 2 (3 wanted: the machine is shared: mood 2 need theirs more): forecast"
    )


def test_dates_are_told_where_there_are_several():
    lines = sentences([decision(), decision(at=AT + 86_400)])
    assert [line.split(" chat ")[0] for line in lines] == ["2026-03-02 14:03:20", "2026-03-03 14:03:20"]


def test_the_newest_decisions_oldest_first(folder: Path):
    result = explain(folder)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 20
    assert lines[-1] == "14:04:20 mood 1 -> 0: nothing has come for 300 s"
    assert lines[-2] == f"14:03:49 chat 2 -> 3: {WHY}"


def test_of_one_service_and_so_many(folder: Path):
    assert len(explain(folder, "--service", "chat", "--last", "3").stdout.splitlines()) == 3
    assert explain(folder, "--service", "mood").stdout.startswith("14:04:20 mood")


def test_as_json_with_the_figures(folder: Path):
    told = json.loads(explain(folder, "--service", "chat", "--last", "1", "--json").stdout)
    assert told["decisions"][0]["figures"] == {"need": 2.7}
    assert told["words"] == [f"14:03:49 chat 2 -> 3: {WHY}"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--service", "chta"], "no decision for a service 'chta'; those of late are for chat, mood"),
        (["req-1"], "give a REQUEST_ID or --scaling, not both"),
    ],
)
def test_what_cannot_be_told(folder: Path, args: list[str], words: str):
    result = explain(folder, *args)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_without_a_store(tmp_path: Path):
    result = explain(tmp_path)
    assert result.exit_code == 2
    assert "a service with `replicas: [least, most]` makes it" in " ".join(result.output.split())
