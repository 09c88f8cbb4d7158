from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.simulation.traces import PROFILE, poisson
from typer.main import get_command
from typer.testing import CliRunner, Result

from foreserve.cli.main import app
from foreserve.cli.simulate_sweep import Asked, command
from foreserve.dispatch.flight import Flight
from foreserve.simulation.fault_kinds import read_faults
from foreserve.simulation.profiles import save_profile
from foreserve.simulation.sweep import faults_of
from foreserve.traces.row import Header, TraceRow

APP = """\
services:
  chat:
    kind: llm
    model: simulated
    replicas: 2
state:
  folder: state
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder with an app, a profile where calibrate would have put it, and a trace."""
    (tmp_path / "app.yaml").write_text(APP)
    save_profile(PROFILE, tmp_path / "state" / "profiles" / "chat.yaml")
    write(tmp_path / "trace.jsonl", poisson(200, 8.0, deadline_s=20.0).rows)
    return tmp_path


def write(path: Path, rows: list[TraceRow]) -> None:
    path.write_bytes(b"\n".join(msgspec.json.encode(each) for each in [Header(name="monday"), *rows]) + b"\n")


def simulate(house: Path, *args: str, trace: str = "trace.jsonl") -> Result:
    return CliRunner().invoke(app, ["simulate", str(house / trace), "--app", str(house / "app.yaml"), *args])


def figures(house: Path, *args: str) -> dict[str, Any]:
    result = simulate(house, "--json", "-", "--quiet", *args)
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = msgspec.json.decode(result.stdout)
    return told


def refused(house: Path, *args: str, trace: str = "trace.jsonl") -> str:
    result = simulate(house, *args, trace=trace)
    assert result.exit_code == 2, result.output
    assert "simulated" not in result.stdout
    return " ".join(result.stderr.split())


def test_a_table_and_a_last_line(house: Path):
    result = simulate(house)
    assert result.exit_code == 0, result.output
    for words in ("200 requests", "TTFT p50", "end-to-end p99", "goodput", "replica-hours", "slots in use", "done"):
        assert words in result.stdout
    assert "simulated 200 requests" in result.stdout


def test_the_figures_are_the_same_bytes_each_time(house: Path):
    args = ("--json", "-", "--quiet", "--set", "chat.replicas=1", "--seed", "7")
    assert simulate(house, *args).stdout_bytes == simulate(house, *args).stdout_bytes
    told = figures(house)
    assert told["seed"] == 0
    assert told["trace"]["rows"] == 200
    assert told["runs"][0]["total"]["requests"] == 200


def test_the_bytes_do_not_hang_on_the_order_of_hashes(house: Path):
    told: list[bytes] = []
    for hashes in ("1", "2"):
        args = ["simulate", "trace.jsonl", "--app", "app.yaml", "--faults", "worker_death:every_s=9", "--json", "-"]
        run = subprocess.run(
            [sys.executable, "-m", "foreserve.cli.main", *args, "--quiet"],
            cwd=house,
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            check=True,
        )
        told.append(run.stdout)
    assert told[0] == told[1]
    assert len(told[0]) > 1000


def test_settings_are_changed_by_dotted_keys(house: Path):
    told = figures(
        house, "--set", "services.chat.replicas=3", "--set", "chat.policy=fcfs", "--set", "chat.queue.max_waiting=9"
    )
    chat = told["runs"][0]["settings"]["chat"]
    assert (chat["replicas"], chat["policy"], chat["queue"]["max_waiting"]) == (3, "fcfs", 9)
    assert chat["queue"]["max_wait_s"] == 30.0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            "services.chat.replica=4",
            "--set services.chat.replica: unknown key 'replica'; did you mean 'replicas'? valid: ",
        ),
        ("chat.queue.max_waitin=4", "--set chat.queue.max_waitin: unknown key 'max_waitin'"),
        ("chat.replicas=many", "--set chat.replicas is 'many': expected int"),
        ("chat.policy=best", "no batch policy is called 'best'; valid: auto, deferred, earliest_root, elastic"),
        ("talk.replicas=4", "--set talk.replicas: there is no 'talk' in the app; valid: services, chat, server, state"),
        ("services.talk.replicas=4", "--set services.talk.replicas: there is no 'talk' in the app; valid: chat"),
        ("chat.replicas", "--set chat.replicas: write KEY=VALUE"),
        ("chat=4", "--set chat is 4: expected keys and values"),
        ("chat.replicas=[1", "--set chat.replicas: '[1' is no value"),
        ("server.prt=4", "--set server.prt: unknown key 'prt'"),
    ],
)
def test_a_setting_that_is_wrong_is_told_with_what_is_valid(house: Path, wrong: str, words: str):
    assert words in refused(house, "--set", wrong)


def test_runs_are_compared_by_what_files_change(house: Path):
    (house / "one.yaml").write_text("chat: {replicas: 1}\n")
    (house / "whole.yaml").write_text(APP.replace("replicas: 2", "replicas: 4\n    policy: fcfs"))
    files = ["--compare", str(house / "one.yaml"), str(house / "whole.yaml")]
    told = figures(house, *files)
    assert [run["name"] for run in told["runs"]] == ["app.yaml", "one.yaml", "whole.yaml"]
    assert [run["settings"]["chat"]["replicas"] for run in told["runs"]] == [2, 1, 4]
    alone = figures(house, "--set", "chat.replicas=1")["runs"][0]
    assert told["runs"][1]["total"] == alone["total"]
    shown = simulate(house, *files).stdout
    assert "settings that differ" in shown
    assert "chat.policy" in shown
    assert "in 3 runs" in shown


def test_a_setting_is_varied(house: Path):
    runs = figures(house, "--vary", "chat.replicas=1,2,4")["runs"]
    assert [run["name"] for run in runs] == ["chat.replicas=1", "chat.replicas=2", "chat.replicas=4"]
    assert [run["settings"]["chat"]["replicas"] for run in runs] == [1, 2, 4]
    waits = [run["total"]["wait"]["p90"] for run in runs]
    assert waits == sorted(waits, reverse=True)
    assert "--vary chat.replica: unknown key 'replica'" in refused(house, "--vary", "chat.replica=1,2")
    for wrong in ("chat.replicas", "chat.replicas=", "chat.replicas=[1,2", "=1"):
        assert f"--vary {wrong}: write KEY=VALUE,VALUE" in refused(house, "--vary", wrong)


def test_a_price_tells_what_runs_cost(house: Path):
    run = figures(house, "--price", "2.5")["runs"][0]
    cost, chat = run["cost"], run["services"]["chat"]
    assert cost["total"] == pytest.approx(2.5 * chat["replica_hours"])
    assert cost["per_1000_done"] == pytest.approx(1e3 * cost["total"] / run["total"]["outcomes"]["done"])
    assert cost["per_million_output_tokens"] == pytest.approx(1e6 * cost["total"] / run["total"]["output_tokens"])
    assert figures(house)["runs"][0]["cost"] is None
    shown = simulate(house, "--price", "2.5", "--report", str(house / "r.html")).stdout
    for label in ("cost per 1,000 requests done", "cost per million output tokens"):
        assert label in shown
        assert label in (house / "r.html").read_text()
    assert simulate(house, "--price", "-1").exit_code == 2
    assert "--price is inf" in refused(house, "--price", "inf")


def test_a_file_to_compare_is_checked_before_anything_runs(house: Path):
    (house / "bad.yaml").write_text("# better\nchat:\n  replicas: 2\n  polcy: fcfs\n")
    assert "bad.yaml, line 4: chat.polcy: unknown key 'polcy'; did you mean 'policy'?" in refused(
        house, "--compare", str(house / "bad.yaml")
    )
    (house / "empty.yaml").write_text("")
    assert "it says nothing" in refused(house, "--compare", str(house / "empty.yaml"))


def test_one_trace_is_played(house: Path):
    assert "one TRACE is played at a time" in refused(house, str(house / "other.jsonl"))


def test_a_service_without_profile_is_told_where_one_was_looked_for(house: Path):
    (house / "state" / "profiles" / "chat.yaml").unlink()
    words = refused(house)
    assert "service 'chat' has no engine profile" in words
    assert "foreserve calibrate" in words
    assert "chat.yaml" in words


def test_the_service_without_profile_is_named_where_others_need_none(house: Path):
    (house / "both.py").write_text(
        "import foreserve as fs\n\n@fs.function\ndef shout(text: str) -> str:\n    return text\n\n"
        "app = fs.App(shout=shout, chat=fs.LLM('simulated'), state={'folder': 'none'})\n"
    )
    told = CliRunner().invoke(app, ["simulate", str(house / "trace.jsonl"), "--app", str(house / "both.py")])
    assert told.exit_code == 2
    words = " ".join(told.stderr.split())
    assert "both.py: service 'chat' has no engine profile" in words
    assert "(looked for " in words
    assert "none/profiles/chat.yaml)" in words


def test_profiles_are_named_by_service(house: Path):
    save_profile(msgspec.structs.replace(PROFILE, slots=1), house / "slow.yaml")
    quick = figures(house)["runs"][0]["total"]["e2e"]["p50"]
    for given in (f"chat={house / 'slow.yaml'}", str(house / "slow.yaml")):
        assert figures(house, "--profile", given)["runs"][0]["total"]["e2e"]["p50"] > quick
    assert "no service 'talk' can be simulated; valid: chat" in refused(house, "--profile", "talk=x.yaml")


def test_a_trace_for_a_service_that_is_not_there(house: Path):
    write(house / "other.jsonl", [TraceRow(arrival=0.0, input_tokens=5, output_tokens=5, service="talk")])
    words = refused(house, trace="other.jsonl")
    assert "requests for a service 'talk'" in words
    assert "`--service chat` plays all requests to that one, `--map talk=chat` those of this name" in words


def test_the_names_of_services_can_be_mapped(house: Path):
    rows = [TraceRow(arrival=i, input_tokens=5, output_tokens=5, service=f"gpt={i}") for i in range(2)]
    write(house / "other.jsonl", rows)
    told = [
        simulate(house, "--json", "-", "--quiet", *args, trace="other.jsonl")
        for args in (["--service", "chat"], ["--map", "gpt=0=chat", "--map", "gpt=1=chat"])
    ]
    for each in told:
        assert each.exit_code == 0, each.output
        assert msgspec.json.decode(each.stdout)["runs"][0]["services"]["chat"]["tally"]["requests"] == 2
    assert "requests for a service 'gpt=1'" in refused(house, "--map", "gpt=0=chat", trace="other.jsonl")
    assert "--map chat: write NAME=SERVICE" in refused(house, "--map", "chat")
    assert "valid: one of the two" in refused(house, "--map", "a=b", "--service", "chat")


def test_what_a_recording_tells_stands_beside(house: Path):
    rows = [msgspec.structs.replace(row, outcome="done", first_s=0.25, total_s=1.5) for row in poisson(100, 8.0).rows]
    write(house / "live.jsonl", rows)
    result = simulate(house, trace="live.jsonl")
    assert "live" in result.stdout
    assert "1.50 s" in result.stdout
    assert "against live" in result.stdout
    assert re.search(r"chat: simulated end-to-end p50 is \d+ % (below|above) live: measure the profile", result.stdout)
    assert "live" not in simulate(house).stdout


def test_what_the_profile_says_of_itself_is_told(house: Path):
    noted = msgspec.structs.replace(PROFILE, notes=["the machine was busy: measure it again"])
    save_profile(noted, house / "state" / "profiles" / "chat.yaml")
    told = figures(house)["runs"][0]
    assert "chat's profile: the machine was busy: measure it again" in told["notes"]


def test_where_nothing_can_be_written_nothing_runs(house: Path):
    assert "cannot be written" in refused(house, "--json", str(house / "no" / "where.json"))


def test_nothing_is_written_over_what_is_read_or_twice(house: Path):
    (house / "one.yaml").write_text("chat: {replicas: 1}\n")
    (house / "loop.json").symlink_to(house / "trace.jsonl")
    save_profile(PROFILE, house / "p.yaml")
    before = {path: path.read_bytes() for path in house.rglob("*") if path.is_file()}
    one, profile = ["--compare", str(house / "one.yaml")], ["--profile", f"chat={house / 'p.yaml'}"]
    for option in ("--json", "--report", "--timeline", "--record-decisions"):
        for name in ("trace.jsonl", "loop.json", "app.yaml", "one.yaml", "p.yaml", "state/profiles/chat.yaml"):
            assert "is read by this command and would be lost" in refused(
                house, option, str(house / name), *one, *profile
            )
    twice = ["--json", str(house / "x.json"), "--timeline", str(house / "y" / ".." / "x.json")]
    (house / "y").mkdir()
    assert "--timeline: " in (words := refused(house, *twice))
    assert "is written for --json too" in words
    second = ["--timeline", str(house / "t.json"), "--report", str(house / "t.2.json")]
    assert "t.2.json is written for --report too" in refused(house, *second, *one)
    (house / "t.2.json").mkdir()
    assert "t.2.json: cannot be written" in refused(house, "--timeline", str(house / "t.json"), *one)
    assert {path: path.read_bytes() for path in house.rglob("*") if path.is_file()} == before


def test_a_report_and_a_timeline_for_each_run(house: Path):
    (house / "one.yaml").write_text("chat: {replicas: 1}\n")
    out = ["--report", str(house / "r.html"), "--timeline", str(house / "t.json"), "--timeline-requests", "50"]
    assert simulate(house, "--compare", str(house / "one.yaml"), *out).exit_code == 0
    assert "Simulation of monday" in (house / "r.html").read_text()
    for name in ("t.json", "t.2.json"):
        events = msgspec.json.decode((house / name).read_bytes())["traceEvents"]
        assert sum(event.get("cat") == "run" for event in events) == 50


def test_a_part_of_the_trace_faster(house: Path):
    whole, part = figures(house)["trace"], figures(house, "--from", "5", "--limit", "40", "--speed", "2")["trace"]
    assert whole["rows"] == 200
    assert part["rows"] == 40
    assert part["span_s"] == pytest.approx(40 / 8 / 2, rel=0.5)
    assert "there is no request in it" in refused(house, "--from", "1h")


def test_bad_rows_are_told_or_skipped(house: Path):
    with (house / "trace.jsonl").open("a") as file:
        file.write('{"arrival": "soon"}\n')
    assert "trace.jsonl: line 202" in refused(house)
    assert figures(house, "--skip-bad")["trace"]["skipped"] == 1


def test_a_setting_that_the_profile_holds_is_carried_over(house: Path):
    narrow = figures(house, "--set", "chat.max_running=1")["runs"][0]
    wide = figures(house)["runs"][0]
    assert narrow["total"]["wait"]["p50"] > wide["total"]["wait"]["p50"]
    notes = figures(house, "--set", "chat.max_running=64")["runs"][0]["notes"]
    assert any("64 requests at once were not measured" in note for note in notes)


def test_faults_are_told_and_sweep_by_seed(house: Path):
    faults = ["--faults", "worker_death:every_s=5", "--fault-seed", "3"]
    told = figures(house, *faults)["runs"][0]
    assert any(note.startswith("faults: worker_death") for note in told["notes"])
    assert told["total"]["requests"] == 200
    swept = simulate(house, *faults, "--seeds", "2")
    assert swept.exit_code == 0, swept.output
    shown = " ".join(swept.stdout.split())
    assert "2 seeds, 400 requests: all checks hold" in shown
    assert re.search(r"done: median [\d.]+ %, worst [\d.]+ % \(seed [34]\) again: foreserve simulate ", shown)
    assert re.search(r"TTFT p99: median [\d.]+ m?s, worst [\d.]+ m?s \(seed [34]\) again: foreserve simulate ", shown)


def test_faults_that_were_drawn_can_be_had_alone(house: Path):
    notes = figures(house, "--faults", "mixed", "--fault-seed", "5")["runs"][0]["notes"]
    drawn = [shlex.split(note.removeprefix("drawn: ")) for note in notes if note.startswith("drawn: ")]
    assert drawn
    assert read_faults(",".join(each[1] for each in drawn)) == faults_of("mixed", 5)
    assert any(note.startswith("faults: ") for note in figures(house, *drawn[0])["runs"][0]["notes"])


def test_a_check_that_fails_is_a_note_and_a_status(house: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Flight, "expire", lambda self, loop, expired: None)
    args = ("--set", "chat.policy=fcfs", "--set", "chat.replicas=1", "--speed", "20", "--faults", "load_spike")
    told = simulate(house, *args)
    assert told.exit_code == 1, told.output
    assert "warning: does not hold: deadline at " in told.stdout


def test_a_fault_that_does_not_exist_is_told_before_anything_runs(house: Path):
    for more in ([], ["--seeds", "2"]):
        assert "no fault is called 'worker_deth'; did you mean 'worker_death'?" in refused(
            house, "--faults", "worker_deth", *more
        )
    assert "--seeds goes with --faults" in refused(house, "--seeds", "2")


def test_the_command_of_a_seed_says_all_that_was_asked():
    asked = Asked(
        app="a b.py",
        sets=("chat.replicas=1",),
        profiles=("chat=p.yaml",),
        trace="t.jsonl",
        reading=("azure", True, False, None, "5min", None, 1.0, 2.0, 100),
        seed=4,
        faults="mixed",
        maps=("gpt-4o=chat",),
    )
    assert command(asked, 17) == (
        "foreserve simulate t.jsonl --app 'a b.py' --set chat.replicas=1 --profile chat=p.yaml --format azure "
        "--skip-bad --from 5min --speed 2.0 --limit 100 --map gpt-4o=chat --seed 4 "
        "--faults mixed --fault-seed 17 --seeds 1"
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--fault-seed", "3"], "--fault-seed goes with --faults, which is missing"),
        (["--faults", "mixed", "--jobs", "2"], "--jobs goes with --seeds, which is missing"),
        (["--timeline-requests", "5"], "--timeline-requests goes with --timeline, which is missing"),
        (
            ["--faults", "mixed", "--seeds", "2", "--json", "-", "--report", "x.html"],
            "--report, --json would do nothing",
        ),
    ],
)
def test_no_option_is_silently_left_out(house: Path, args: list[str], words: str):
    assert words in refused(house, *args)


@pytest.mark.parametrize(
    "args",
    [["--report", "r.html"], ["--set", "chat.replicas=3"], ["--limit", "5"], ["--profile", "p.yaml"], ["--json", "-"]],
)
def test_a_random_sweep_heeds_no_option_of_a_trace(args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    wrong = CliRunner().invoke(app, ["simulate", "--faults", "mixed", "--seeds", "1", *args])
    assert wrong.exit_code == 2
    assert f"{args[0]} would do nothing without TRACE and --app" in wrong.stderr
    assert not list(tmp_path.iterdir())


ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "simulation.md").read_text()


def test_the_example_of_the_page_runs_and_has_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown = re.search(r"```sh\n(.*?)```", PAGE, re.S)
    assert shown
    monkeypatch.chdir(ROOT)
    args = shlex.split(shown[1].replace("\\\n", " ").replace("report.html", str(tmp_path / "report.html")))
    result = CliRunner().invoke(app, args[1:])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    first = PAGE.partition("## Replicas that follow the load")[0]
    rows = re.findall(r"^\| ([^|]+) \| [\d.,]+(?: m?s)? \| [\d.,]+(?: m?s)?  [-+=]", first, re.M)
    assert len(rows) >= 6
    for name in rows:
        assert f" {name} " in result.stdout, name


def test_the_python_of_the_page_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    shown = re.search(r"```python\n(.*?)```", PAGE, re.S)
    assert shown
    monkeypatch.chdir(ROOT)
    exec(compile(shown[1], "docs/simulation.md", "exec"), {})
    assert "'done': " in capsys.readouterr().out


def test_every_option_is_on_the_page():
    command = get_command(app).commands["simulate"]  # type: ignore[attr-defined]
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("--") and option != "--help":
                assert f"`{option}" in PAGE, option


def test_without_trace_and_app_a_sweep_draws_its_own():
    result = CliRunner().invoke(app, ["simulate", "--faults", "mixed", "--seeds", "3", "--fault-seed", "7"])
    assert result.exit_code == 0, result.output
    assert "3 seeds, " in result.stdout
    assert "all checks hold" in result.stdout
    for args in (["--faults", "mixed"], ["--seeds", "3"], ["--app", "app.yaml"]):
        wrong = CliRunner().invoke(app, ["simulate", *args])
        assert wrong.exit_code == 2
        lost = "TRACE is missing" if args[0] == "--app" else "TRACE and --app are missing"
        assert lost in wrong.stderr
    assert "--app is missing" in CliRunner().invoke(app, ["simulate", "t.jsonl"]).stderr


def test_decisions_are_recorded_run_by_run_and_replayed(house: Path, tmp_path: Path):
    (tmp_path / "fcfs.yaml").write_text("services: {chat: {policy: fcfs}}\n")
    kept = tmp_path / "d.jsonl"
    told = simulate(house, "--compare", str(tmp_path / "fcfs.yaml"), "--record-decisions", str(kept))
    assert told.exit_code == 0, told.output
    for path in (kept, tmp_path / "d.2.jsonl"):
        again = CliRunner().invoke(app, ["replay", str(path)])
        assert again.exit_code == 0, again.output
        assert "decisions are the same" in again.stdout


def test_a_recording_ends_where_the_app_says_and_the_result_has_a_note_of_it(house: Path, tmp_path: Path):
    (house / "app.yaml").write_text(APP + "  decisions_mb: 0.01\n")
    kept = tmp_path / "d.jsonl"
    told = simulate(house, "--record-decisions", str(kept))
    assert told.exit_code == 0, told.output
    assert 5_000 < kept.stat().st_size < 10_200
    assert "d.jsonl is not whole: it is full: it may have 10,000 bytes" in " ".join(told.stdout.split())


def test_replicas_that_come_and_go_are_set_varied_and_compared(house: Path):
    told = figures(house, "--set", "chat.replicas=[1,3]", "--set", "chat.scaling.window_s=5")
    (run,) = told["runs"]
    assert run["settings"]["chat"]["replicas"] == [1, 3]
    assert run["services"]["chat"]["scaling"]["decisions"] is not None
    varied = figures(house, "--vary", "chat.replicas=[1,3],2")
    assert [each["name"] for each in varied["runs"]] == ["chat.replicas=[1, 3]", "chat.replicas=2"]
    assert varied["runs"][1]["services"]["chat"]["scaling"] is None


def test_a_history_is_not_played(house: Path):
    whole, rest = figures(house)["runs"][0], figures(house, "--history", "10s")["runs"][0]
    assert 0 < rest["total"]["requests"] < whole["total"]["requests"]
    assert any("10 s before it were not played" in note for note in rest["notes"])
    assert "--history: 'soon' is no time" in refused(house, "--history", "soon")
