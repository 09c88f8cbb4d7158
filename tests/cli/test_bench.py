import asyncio
import json
import os
import signal
import threading
from contextlib import contextmanager

import pytest
import typer
from tests.loadgen.server import serving
from typer.testing import CliRunner

from foreserve.cli.bench import bench
from foreserve.cli.bench_report import Report
from foreserve.loadgen.client import ClientOptions
from foreserve.loadgen.records import Ending, Result
from foreserve.loadgen.run import Limits, Run
from foreserve.loadgen.stats import Targets, WarmUp, summarise

app = typer.Typer()
app.command()(bench)


@contextmanager
def server(gap_s=0.0):
    """The test server in a thread of its own: the command runs an event loop itself."""
    ready, over, box = threading.Event(), None, {}

    async def main():
        nonlocal over
        over = asyncio.Event()
        async with serving(gap_s) as fake:
            box["fake"], box["loop"] = fake, asyncio.get_running_loop()
            ready.set()
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield box["fake"]
    finally:
        box["loop"].call_soon_threadsafe(over.set)
        thread.join(10)
        assert not thread.is_alive()


def cli(*args, **options):
    return CliRunner().invoke(app, [str(arg) for arg in args], **options)


def test_a_run_against_a_server(tmp_path):
    out, records = tmp_path / "out.json", tmp_path / "records.jsonl"
    with server(gap_s=0.001) as fake:
        result = cli(
            fake.url,
            "--rate",
            200,
            "--requests",
            20,
            "--warmup",
            2,
            "--slo-ms",
            60_000,
            "--json",
            out,
            "--records",
            records,
        )
    assert result.exit_code == 0, result.output
    for word in ("TTFT", "TPOT", "ITL", "end-to-end", "throughput", "goodput", "18 / 18", "tiny at"):
        assert word in result.output
    document = json.loads(out.read_text())
    assert document["summary"]["done"] == document["summary"]["good"] == 18
    assert document["summary"]["output_tokens"] == 18 * 8
    assert document["summary"]["ttft"]["p50"] > 0
    assert document["settings"]["client"]["model"] == "tiny"
    assert document["settings"]["load"]["process"] == "poisson"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(20))
    assert {len(line["output_times"]) for line in lines} == {4}
    assert len(fake.seen) == 20


def test_json_on_stdout_is_nothing_but_json():
    with server() as fake:
        result = cli(fake.url, "--clients", 2, "--requests", 6, "--json", "-")
    assert json.loads(result.stdout)["summary"]["done"] == 6
    assert "end-to-end" in result.stderr


def test_terms_of_requests_and_no_secret_in_the_json(tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "fine", "tenant": "gold"}\n{"prompt": "other", "max_tokens": 3}\n')
    with server() as fake:
        result = cli(
            fake.url, "--prompts", prompts, "--requests", 2, "--arrivals", "constant", "--rate", 100,
            "--endpoint", "completions", "--model", "mine", "--max-tokens", 7, "--extra", '{"temperature": 0}',
            "--header", "x-one: 1", "--api-key-env", "BENCH_TEST_KEY", "--tenant", "plain", "--slo-ms", 1500,
            "--send-slo", "--json", "-",
            env={"BENCH_TEST_KEY": "sk-very-secret"},
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "sk-very-secret" not in result.output
    headers, bodies = zip(*sorted(fake.seen, key=lambda seen: seen[1]["prompt"]), strict=True)
    lowered = [{name.lower(): value for name, value in one.items()} for one in headers]
    assert [one["x-tenant"] for one in lowered] == ["gold", "plain"]
    assert {one["authorization"] for one in lowered} == {"Bearer sk-very-secret"}
    assert {(one["x-slo-ms"], one["x-one"]) for one in lowered} == {("1500", "1")}
    assert [(body["model"], body["max_tokens"], body["temperature"]) for body in bodies] == [
        ("mine", 7, 0),
        ("mine", 7, 0),
    ]


def test_a_trace_with_its_lengths(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:00,9,11\n2024-01-01 00:00:10,9,12\n")
    with server() as fake:
        result = cli(fake.url, "--trace", trace, "--rate-scale", 1000, "--trace-lengths", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.output == ""
    assert [body["max_tokens"] for _, body in fake.seen] == [11, 12]


def test_shuffling_is_the_same_for_a_seed():
    orders = []
    for seed in (1, 1, 2):
        with server() as fake:
            cli(fake.url, "--clients", 1, "--requests", 20, "--shuffle", "--seed", seed, "--quiet")
        orders.append([body["messages"][0]["content"] for _, body in fake.seen])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_when_nothing_was_answered_the_exit_status_says_so(tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "status:500"}\n')
    with server() as fake:
        result = cli(fake.url, "--prompts", prompts, "--requests", 3, "--rate", 100)
    assert result.exit_code == 1
    assert "3 http_error" in result.output
    assert "note: first error (status 500)" in result.output
    assert "as you asked" in result.output


def test_notes_on_what_was_not_as_asked(tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "no_usage"}\n{"prompt": "whole"}\n')
    with server() as fake:
        result = cli(fake.url, "--prompts", prompts, "--requests", 2, "--rate", 100)
    assert "note: 1 answers had no usage" in result.output
    assert "note: 1 answers came in one piece" in result.output


def report(*lags):
    results = [
        Result(index=n, due=float(n), sent=n + lag, ended=n + lag + 1, ending=Ending.DONE) for n, lag in enumerate(lags)
    ]
    summary = summarise(results)
    return Report(
        ClientOptions(url="http://x", model="m"), Limits(), Targets(), WarmUp(), summary, Run(results, 1.0, 0, False)
    )


def test_a_late_generator_says_that_its_figures_are_its_own():
    assert any("generator itself was late" in note for note in report(0.2, 0.0, 0.1).notes())
    assert report(0.001, 0.0, 0.04).notes() == []


def test_ctrl_c_reports_what_was_measured(tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "fine"}\n{"prompt": "hang"}\n')
    with server() as fake:

        def interrupt():
            for _ in range(500):
                if fake.calls["hang"]:
                    break
                over.wait(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        over = threading.Event()
        thread = threading.Thread(target=interrupt)
        thread.start()
        result = cli(
            fake.url, "--prompts", prompts, "--rate", 20, "--arrivals", "constant", "--duration", 60, "--json", "-"
        )
        thread.join()
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["summary"]["endings"]["abandoned"] >= 1
    assert "interrupted: the figures are of what ran until then" in document["notes"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["h:1"], "must start with http"),
        (["http://127.0.0.1:9", "--endpoint", "chats"], "did you mean 'chat'? valid: chat, completions"),
        (["http://127.0.0.1:9", "--clients", 2, "--rate", 3], "--rate has no meaning"),
        (["http://127.0.0.1:9", "--clients", 2, "--cv", 3], "--cv belongs to --arrivals gamma"),
        (["http://127.0.0.1:9", "--arrivals", "trace"], "needs --trace"),
        (
            ["http://127.0.0.1:9", "--arrivals", "poisson", "--cv", 2],
            "--cv belongs to --arrivals gamma, not to poisson",
        ),
        (["http://127.0.0.1:9", "--rate", 0], "rate is 0.0; it must be above 0"),
        (["http://127.0.0.1:9", "--rate-scale", 2], "need --trace"),
        (["http://127.0.0.1:9", "--extra", "[1]"], "--extra: expected a JSON object"),
        (["http://127.0.0.1:9", "--header", "nothing"], "--header: 'nothing' is not 'Name: value'"),
        (["http://127.0.0.1:9", "--api-key-env", "NO_SUCH_KEY"], "the environment has no NO_SUCH_KEY"),
        (["http://127.0.0.1:9", "--prompts", "/none.jsonl"], "/none.jsonl: cannot be read"),
        (["http://127.0.0.1:9", "--requests", 0], "requests is 0"),
        (["http://127.0.0.1:9", "--timeout", 0, "--model", "m"], "timeout_s is 0.0; it must be above 0"),
        (["http://127.0.0.1:9", "--retries", 99], "retries is 99; valid: 0 to 10"),
        (["http://127.0.0.1:9", "--slo-ms", -1], "the e2e target is -0.001 s"),
        (["http://127.0.0.1:9", "--warmup", -1], "warm-up is -1"),
        (["http://127.0.0.1:9", "--send-slo"], "--send-slo needs --slo-ms"),
        (["http://127.0.0.1:9", "--json", "/no/such/folder/x"], "cannot be written"),
        (["http://127.0.0.1:9"], "http://127.0.0.1:9/v1/models: "),
    ],
)
def test_what_is_wrong_is_said_in_words(args, says):
    result = cli(*args)
    assert result.exit_code == 2, result.output
    assert says in result.output.replace("\n", "")


def test_help_names_units():
    text = cli("--help", env={"COLUMNS": "200", "TERM": "dumb"}).output
    for word in ("milliseconds", "Seconds", "requests a second", "tokens"):
        assert word in text
