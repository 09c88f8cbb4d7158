from __future__ import annotations

from pathlib import Path

import pytest
from tests.simulation.trials import trial
from typer.testing import CliRunner, Result

from foreserve.cli.main import app


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decisions") / "d.jsonl"
    assert not trial("worker_death:every_s=10", 1, policy="fcfs", per_s=12.0, decisions=path).findings
    return path


def replay(path: Path, *args: str) -> Result:
    return CliRunner().invoke(app, ["replay", str(path), *args])


def test_the_same_policies_decide_the_same(recording: Path):
    result = replay(recording)
    assert result.exit_code == 0, result.output
    assert "decisions are the same" in result.stdout
    assert "not whole" not in result.stdout
    assert replay(recording, "--quiet").stdout == ""


def test_a_recording_that_ends_early_is_not_told_as_a_whole_one(recording: Path, tmp_path: Path):
    """Because it had as many bytes as it may, or because its server was killed."""
    path = tmp_path / "short.jsonl"
    told = trial("", 1, policy="fcfs", per_s=12.0, decisions=path, state={"decisions_mb": 0.02})
    assert not told.findings
    assert 10_000 < path.stat().st_size < 20_200
    result = replay(path)
    assert result.exit_code == 0, result.output
    assert "the recording is not whole; it ends after " in result.stdout
    assert "calls, because it is full: it may have 20,000 bytes" in result.stdout
    assert "decisions in it are the same" in result.stdout
    path.write_bytes(recording.read_bytes()[:20_000])
    assert "not whole; it ends after" in (cut := replay(path).stdout)
    assert "it was cut off" in cut


def test_another_policy_is_told_by_how_much(recording: Path):
    result = replay(recording, "--policy", "hrrn", "--set", "aging=2.0")
    assert result.exit_code == 0, result.output
    assert "decisions would have been others" in result.stdout
    assert "the first is in line" in result.stdout


def test_a_decision_that_differs_fails_and_is_shown_with_its_inputs(recording: Path, tmp_path: Path):
    path = tmp_path / "t.jsonl"
    lines = recording.read_bytes().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if b'"call":"placed"' in line and b"chat/0" in line)
    lines[at] = lines[at].replace(b'"replica":"chat/0', b'"replica":"chat/7')
    path.write_bytes(b"".join(lines))
    result = replay(path)
    assert result.exit_code == 1, result.output
    assert f"the first is in line {at + 1}:" in result.stdout
    assert '"replica":"chat/7' in result.stdout
    assert replay(path, "--placement", "round_robin").exit_code == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--policy", "hrn"], "no batch policy is called 'hrn'; did you mean 'hrrn'?"),
        (["--policy", "hrrn", "--set", "aging=fast"], "expected"),
        (["--set", "aging"], "is no OPTION=VALUE"),
        (["--admission", "never"], "no admission is called 'never'"),
    ],
)
def test_what_is_wrong_is_told(recording: Path, args: list[str], words: str):
    result = replay(recording, *args)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_file_that_is_none(tmp_path: Path):
    assert "cannot be read" in replay(tmp_path / "none").stderr
    (tmp_path / "trace.jsonl").write_text('{"arrival": 1.0}\n')
    result = replay(tmp_path / "trace.jsonl")
    assert result.exit_code == 2
    assert "trace.jsonl:1: no line of a recording of decisions" in result.stderr
