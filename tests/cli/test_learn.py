from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.services.foresight import asked, length
from typer.testing import CliRunner, Result

from foreserve.cli import learn
from foreserve.cli.main import app
from foreserve.core import Outcome, OutcomeKind
from foreserve.samples import read, samples_file
from foreserve.services.forgetting import learned_services
from foreserve.services.tiers import Choice
from foreserve.services.training import load
from foreserve.settings import StateSettings
from foreserve.state import History


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "choose", lambda wanted: (Choice(tier="fast", why="a test"), None))


def rows(tmp_path: Path, count: int, **words: object) -> Path:
    file = tmp_path / "pairs.jsonl"
    lines = []
    for number in range(count):
        what = asked(number)
        tenant = "ann" if number % 2 else "bob"
        row = {"instruction": what.instruction, "text": what.text, "output_tokens": length(number), "tenant": tenant}
        lines.append(json.dumps(row | words))
    file.write_text("\n".join(lines) + "\n")
    return file


def ran(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result: Result) -> str:
    return " ".join(result.output.split())


def test_a_service_learns_from_pairs_and_forgets_a_tenant(tmp_path: Path):
    state = tmp_path / "state"
    result = ran("learn", rows(tmp_path, 600), "--service", "chat", "--state", state)
    assert result.exit_code == 0, result.output
    assert "chat has learned from 600 pairs" in said(result)
    model = load(state, "chat", "fast")
    assert model is not None
    assert model.about.samples == 510
    found = read(samples_file(state), "chat", 1000)
    assert len(found) == 600
    assert found[0].tokens == length(0)

    history = History.open(StateSettings(folder=str(state)))
    for number, tenant in enumerate(("ann", "bob", "ann")):
        outcome = Outcome(id=str(number), service="chat", kind=OutcomeKind.DONE, arrival=0.0, ended=1.0, tenant=tenant)
        history.record(outcome, 1.7e9)
    history.flush()
    result = ran("forget", "--tenant", "ann", "--state", state)
    assert result.exit_code == 0, result.output
    assert "300 learned answers and 2 rows of the request history deleted" in said(result)
    assert {row.tenant for row in read(samples_file(state), "chat", 1000)} == {"bob"}
    assert [past.tenant for past in history.recent()] == ["bob"]
    history.close()


def test_an_apps_tokenizer_counts_what_is_given_as_text(tmp_path: Path):
    app_file = tmp_path / "app.yaml"
    app_file.write_text(
        f"state:\n  folder: {tmp_path / 'kept'}\nservices:\n  chat:\n    kind: llm\n    model: simulated\n"
    )
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"text": "hi", "response": "0123456789"}\n\n{"text": "ho", "output_tokens": 7}\n')
    result = ran("learn", file, "--service", "chat", "--app", app_file)
    assert result.exit_code == 0, result.output
    assert [row.tokens for row in read(samples_file(tmp_path / "kept"), "chat", 10)] == [11, 7]
    assert "2 samples; a model wants at least" in said(result)
    result = ran("learn", file, "--service", "cat", "--app", app_file)
    assert result.exit_code == 2
    assert "did you mean 'chat'" in said(result)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", "line 2"),
        ('{"instruction": "x", "output_tokens": 3}', "missing required field `text`"),
        ('{"text": "x"}', "line 2: give `output_tokens`, or `response`"),
        ('{"text": "x", "output_tokens": 0}', "line 2: `output_tokens` is 0"),
        ('{"text": "x", "output_tokens": 10000001}', "is 10000001; it must be from 1 to 10000000"),
        ('{"text": "x", "output_tokens": 9223372036854775808}', "it must be from 1 to 10000000"),
        ('{"text": "x", "output_tokens": ' + "9" * 40 + "}", "line 2: "),
        ('{"text": "x", "response": ""}', "line 2: `response` is empty"),
        ('{"text": "x", "output_tokens": 3, "tennant": "a"}', "unknown field `tennant`"),
        (
            '{"text": "x", "output_tokens": 3, "tennant": "a"}',
            "valid fields: text, instruction, output_tokens, response",
        ),
        ('{"text": "x", "output_tokens": 3, "tenant": "a b"}', "`tenant` is 'a b'; valid: 1 to 64 of letters"),
        ('{"text": "x", "output_tokens": 3, "tenant": "a\\n"}', "line 2: `tenant`"),
        ('{"text": "x", "output_tokens": 3, "tenant": ""}', "line 2: `tenant` is ''"),
        ('{"text": 3, "output_tokens": 1}', "line 2: Expected `str`"),
    ],
)
def test_a_wrong_row_is_named_by_its_line_and_nothing_is_kept(tmp_path: Path, line: str, words: str):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"text": "x", "output_tokens": 3}\n' + line + "\n")
    result = ran("learn", file, "--service", "chat", "--state", tmp_path)
    assert result.exit_code == 2
    assert words in said(result)
    store = samples_file(tmp_path)
    assert not store.exists() or read(store, "chat", 10) == []


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_nothing_is_learned_of_an_empty_file_or_for_no_service(tmp_path: Path, content: str):
    file = tmp_path / "pairs.jsonl"
    file.write_text(content)
    result = ran("learn", file, "--service", "chat", "--state", tmp_path)
    assert (result.exit_code, "no rows in it" in said(result)) == (2, True)
    result = ran("learn", rows(tmp_path, 3), "--service", "", "--state", tmp_path / "none")
    assert (result.exit_code, "--service is empty" in said(result)) == (2, True)
    assert not (tmp_path / "none").exists()


def test_what_is_not_there_is_said(tmp_path: Path):
    result = ran("learn", tmp_path / "none.jsonl", "--service", "chat", "--state", tmp_path)
    assert (result.exit_code, "No such file" in said(result)) == (2, True)
    result = ran("forget", "--tenant", "ann", "--state", tmp_path)
    assert (result.exit_code, "nothing is kept" in said(result)) == (2, True)


def test_a_service_that_is_not_there_is_named_and_nothing_is_marked(tmp_path: Path):
    ran("learn", rows(tmp_path, 20), "--service", "chat", "--state", tmp_path)
    for whose in (("--tenant", "ann"), ()):
        for _ in range(2):  # the first try leaves nothing behind that the second would know
            result = ran("forget", *whose, "--service", "chta", "--state", tmp_path)
            assert result.exit_code == 2
            assert "did you mean 'chat'" in said(result)
            assert "deleted" not in said(result)
    assert learned_services(tmp_path) == {"chat"}
    assert len(read(samples_file(tmp_path), "chat", 100)) == 20
    history = History.open(StateSettings(folder=str(tmp_path)))
    history.record(Outcome(id="1", service="other", kind=OutcomeKind.DONE, arrival=0.0, ended=1.0, tenant="ann"), 1.7e9)
    history.flush()
    result = ran("forget", "--tenant", "ann", "--service", "other", "--state", tmp_path)
    assert (result.exit_code, "1 rows of the request history" in said(result)) == (0, True)
    history.close()


@pytest.mark.parametrize("whose", [(), ("--tenant", ""), ("--service", ""), ("--tenant", "ann", "--service", "")])
def test_whose_is_asked_for(tmp_path: Path, whose: tuple[str, ...]):
    result = ran("forget", *whose, "--state", tmp_path / "none")
    assert (result.exit_code, "whose? valid: --tenant NAME, --service NAME" in said(result)) == (2, True)


def test_a_whole_service_is_forgotten(tmp_path: Path):
    state = tmp_path / "state"
    ran("learn", rows(tmp_path, 200), "--service", "chat", "--state", state)
    assert load(state, "chat", "fast") is not None
    result = ran("forget", "--service", "chat", "--state", state)
    assert result.exit_code == 0, result.output
    assert "all 200 answers that it had learned from are gone" in said(result)
    assert load(state, "chat", "fast") is None
    assert read(samples_file(state), "chat", 10) == []
    result = ran("forget", "--state", state)
    assert (result.exit_code, "--tenant NAME, --service NAME" in said(result)) == (2, True)
