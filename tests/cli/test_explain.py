from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from foreserve.cli.main import app
from foreserve.core import Forecast, Length, Outcome, OutcomeKind
from foreserve.settings import StateSettings
from foreserve.state import History

WALL = 1_700_000_000.0
FORECAST = Forecast(
    input_tokens=40,
    output=Length(mean=12.0, p50=10.0, p80=20.0, p95=30.0, source="fast"),
    most_tokens=256,
    seconds=1.0,
)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    kept = History.open(StateSettings(folder=str(tmp_path)))
    yield kept
    kept.close()


def keep(history: History, request_id: str = "r1", wall: float = WALL, **fields: Any) -> None:
    values: dict[str, Any] = {
        "id": request_id, "service": "chat", "kind": OutcomeKind.DONE, "arrival": 10.0, "started": 14.0, "first": 14.5,
        "ended": 16.0, "finish": "stop", "tenant": "ann", "replica": "chat-0", "why": "highest response ratio",
        "cost": {"slots": 1.0}, "usage": {"prompt_tokens": 40.0, "output_tokens": 62.0}, "forecast": FORECAST,
    }  # fmt: skip
    history.record(Outcome(**{**values, **fields}), wall)
    history.flush()


def explain(history: History, *args: str) -> Result:
    return CliRunner().invoke(app, ["explain", "--state", str(history.path.parent), *args])


def words(history: History, *args: str) -> str:
    result = explain(history, *args)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def test_a_call_of_a_function_has_seconds_and_no_tokens(history: History) -> None:
    forecast = msgspec.structs.replace(FORECAST, input_tokens=0, most_tokens=0, seconds=0.5)
    usage = {"items": 1.0, "seconds": 1.9, "batch": 3.0}
    why = "batch of 3, 0.500 s expected, waited 0.010 s; closed: full"
    keep(history, usage=usage, forecast=forecast, why=why, beside=("r2", "r3"))
    told = words(history, "r1")
    assert "Foreseen (by calls in batches of like size): 500 ms on a replica." in told
    assert "It ran 4.0 times as long as expected." in told
    assert why in told
    assert "on the replica │ 500 ms │ 2.00 s" in told
    assert all(word not in told for word in ("token", "prefill", "decode"))


def test_one_request_in_words_and_figures(history: History) -> None:
    keep(history, ahead=12, before=9, beside=("r2", "r3"), running=5)
    told = words(history, "r1")
    assert "Request r1 to chat, tenant ann, was done 6.00 s after it came" in told
    assert "with 62 tokens" in told
    assert (
        "It waited 4.00 s: 12 waited when it came, 9 were started before it, so at least 1 of them was overtaken"
        in told
    )
    assert "It ran 2.00 s on chat-0, started together with r2, r3, beside 5 that ran there already." in told
    assert "The policy's reason: highest response ratio." in told
    assert "Foreseen (by the fast predictor): 10 tokens as likely as not, at most 20 in four of five cases" in told
    assert "The answer was 3.1 times its p80." in told
    assert "It ran 2.0 times as long as expected." in told
    assert "It waited 2.0 times as long as it ran." in told
    for row in (
        "prompt, tokens │ 40 │ 40", "answer, tokens │ p50 10 · p80 20 · p95 30 │ 62", "mean, limit │ 12, 256",
        "in the queue │ │ 4.00 s", "on the replica │ 1.00 s │ 2.00 s", "to the first chunk (prefill) │ │ 500 ms",
        "from there on (decode) │ │ 1.50 s", "in all │ │ 6.00 s",
    ):  # fmt: skip
        assert row in told, row


def test_what_went_as_foreseen_is_no_surprise(history: History) -> None:
    keep(history, started=10.1, first=10.2, ended=11.2, usage={"prompt_tokens": 40.0, "output_tokens": 12.0})
    told = words(history, "r1")
    assert "Nothing waited when it came; it waited 100 ms for its prompt to be prepared, or for a replica to" in told
    assert "times" not in told


def test_a_call_has_no_prompt_to_wait_for(history: History) -> None:
    keep(history, started=11.2, first=11.3, ended=11.3, usage={"items": 1.0})
    told = words(history, "r1")
    assert "it waited 1.20 s for its batch to be closed, or for a replica to start." in told
    assert "prompt" not in told.partition("It ran")[0]


def test_a_few_milliseconds_more_are_no_surprise(history: History) -> None:
    forecast = msgspec.structs.replace(FORECAST, input_tokens=0, most_tokens=0, seconds=0.002)
    keep(history, started=10.001, first=10.028, ended=10.028, usage={"items": 1.0}, forecast=forecast)
    assert "as long as expected" not in words(history, "r1")


def test_one_that_found_room_waited_for_nothing(history: History) -> None:
    keep(history, started=10.001, first=10.2, ended=11.0)
    assert "Nothing waited when it came, and it was started at once." in words(history, "r1")


def test_later_ones_that_went_first_are_told(history: History) -> None:
    keep(history, ahead=2, before=7)
    assert "2 waited when it came, 7 were started before it, so at least 5 that came later went first" in words(
        history, "r1"
    )


def test_an_answer_cut_by_its_limit_is_not_taken_for_short(history: History) -> None:
    keep(history, "short", finish="length", usage={"output_tokens": 2.0})
    keep(history, "long", finish="length", usage={"output_tokens": 80.0})
    assert "shorter" not in words(history, "short")
    assert "The answer was at least 4.0 times its p80." in words(history, "long")
    figures = json.loads(explain(history, "--last", "5", "--json").stdout)["summary"]
    assert (figures["timed"], figures["error_s"]) == (2, 1.0)
    assert (figures["cut"], figures["foreseen"], figures["within_p80"]) == (2, 1, 0.0)


def test_one_that_was_shed_ran_nowhere(history: History) -> None:
    shed = {"kind": OutcomeKind.SHED, "code": "shed", "reason": "the queue is full: 256 requests wait (limit 256)"}
    keep(history, **shed, started=None, first=None, replica=None, why="", usage={}, forecast=None, finish=None)
    told = words(history, "r1")
    assert "was refused 6.00 s after it came" in told
    assert "the queue is full: 256 requests wait (limit 256) (shed)." in told
    assert "No replica was given it." in told
    assert "waited for" not in told
    assert "in the queue │ │ —" in told


def test_words_that_are_not_kept_are_not_made_up(history: History) -> None:
    keep(history, kind=OutcomeKind.FAILED, code="engine_error", reason="cannot read 'my secret'", finish="error")
    told = words(history, "r1")
    assert "failed 6.00 s after it came" in told
    assert "not kept, as they may quote the prompt (engine_error)" in told
    assert "secret" not in told


def test_a_function_has_no_forecast_and_no_tokens(history: History) -> None:
    keep(history, service="shout", forecast=None, usage={}, first=None)
    told = words(history, "r1")
    assert "Nothing was foreseen of it." in told
    assert "tokens" not in told
    assert "prefill" not in told


@pytest.mark.parametrize(
    ("again", "said"),
    [
        ("replica lost", "its replica was lost before, with nothing delivered."),
        ("out of memory", "its batch had run out of memory before, with nothing delivered."),
        ("server full", "the server had no room for it before, with nothing delivered."),
        ("broken off", "the server broke off before it had answered, with nothing delivered."),
        ("", "why it was made is not kept."),
    ],
)
def test_a_second_attempt_is_told_with_its_reason(history: History, again: str, said: str) -> None:
    keep(history, attempt=1, again=again)
    told = words(history, "r1")
    assert f"This was attempt 2: {said}" in told
    assert "Its last attempt began 4.00 s after it came" in told


def test_an_answer_that_went_on_is_told(history: History) -> None:
    keep(history, attempt=2, again="out of memory, resumed")
    told = words(history, "r1")
    assert "attempt 3: its batch had run out of memory before, and it went on after what had been delivered." in told
    assert "It was first started 4.00 s after it came." in told


def test_a_root_lists_its_parts(history: History) -> None:
    keep(history, "root-0", parent="root")
    keep(
        history,
        "root-1",
        parent="root",
        kind=OutcomeKind.EXPIRED,
        code="deadline_exceeded",
        reason="its deadline passed",
    )
    keep(
        history, "root", forecast=None, kind=OutcomeKind.EXPIRED, code="deadline_exceeded", reason="its deadline passed"
    )
    told = words(history, "root")
    assert "It was served as 2 parts, 1 of them not done, which decided its end" in told
    assert told.index("its parts") < told.index("root-0") < told.index("root-1")
    assert "(a part of root)" in words(history, "root-1")
    assert [part["id"] for part in json.loads(explain(history, "root", "--json").stdout)["parts"]] == [
        "root-0",
        "root-1",
    ]


def test_the_last_ones_with_a_summary(history: History) -> None:
    keep(history, "other", service="rank", forecast=None, usage={})
    for index, tokens in enumerate((5.0, 10.0, 18.0, 90.0)):
        keep(history, f"r{index}", usage={"output_tokens": tokens})
    told = words(history, "--last", "3", "--service", "chat")
    assert "r0" not in told
    assert told.index("r1") < told.index("r2") < told.index("r3")
    assert "4.5 times its p80" in told
    assert "3 requests: 3 done; median wait 4.00 s. Lengths of 3: median error 8 tokens, 67 % within p80;" in told
    assert "time of 3: median error 1.00 s." in told
    assert "other" in words(history, "--last", "5")


def test_without_forecasts_the_summary_says_so(history: History) -> None:
    keep(history, forecast=None)
    assert "No length was foreseen that could be compared." in words(history, "--last", "1")


def test_json_has_the_row_and_the_words(history: History) -> None:
    keep(history, ahead=1, before=1)
    told = json.loads(explain(history, "r1", "--json").stdout)
    assert told["request"]["forecast"]["output"]["p80"] == 20.0
    assert told["request"]["usage"]["output_tokens"] == 62.0
    assert told["words"][0].startswith("Request r1 to chat")
    assert told["parts"] == []


def test_an_unknown_id_names_the_newest(history: History) -> None:
    for index in range(8):
        keep(history, f"r{index}")
    result = explain(history, "nobody")
    assert result.exit_code == 2
    assert "no request 'nobody' has ended" in result.output
    assert "the newest are r7, r6, r5, r4, r3\n" in result.output


def test_an_unknown_service_names_those_there_are(history: History) -> None:
    keep(history)
    result = explain(history, "--last", "3", "--service", "chad")
    assert result.exit_code == 2
    assert "no request of a service 'chad'; those of late are of chat" in result.output


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ((), "give one REQUEST_ID, --last N or --scaling"),
        (("r1", "--last", "2"), "give one REQUEST_ID, --last N or --scaling"),
        (("r1", "--service", "chat"), "--service goes with --last"),
        (("r1", "--app", "app.py"), "give one of them"),
    ],
)
def test_options_that_do_not_go_together(history: History, args: tuple[str, ...], problem: str) -> None:
    result = explain(history, *args)
    assert result.exit_code == 2
    assert problem in result.output


def test_the_app_file_says_where_the_history_is(history: History, tmp_path: Path) -> None:
    keep(history)
    file = tmp_path / "app.yaml"
    file.write_text(f"services:\n  chat: {{kind: llm, model: simulated}}\nstate: {{folder: {tmp_path}}}\n")
    result = CliRunner().invoke(app, ["explain", "r1", "--app", str(file)])
    assert result.exit_code == 0, result.output
    file.write_text("services:\n  chat: {kind: llm, model: simulated}\nstate: {history: false}\n")
    result = CliRunner().invoke(app, ["explain", "r1", "--app", str(file)])
    assert result.exit_code == 2
    assert "`state.history` is off" in result.output


def test_no_history_yet(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["explain", "r1", "--state", str(tmp_path)])
    assert result.exit_code == 2
    assert "no request history at" in result.output
