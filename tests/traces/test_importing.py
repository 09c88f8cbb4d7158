import csv
import json

import pytest

from foreserve.errors import ConfigError
from foreserve.traces import sorting
from foreserve.traces.importing import RECIPES, Columns, Log
from foreserve.traces.own import open_own, write_trace

LITELLM = [  # as the proxy's table has them, newest first, as its pages and its API give them
    {"request_id": "c", "call_type": "acompletion", "api_key": "88dc", "total_tokens": 0, "prompt_tokens": 0,
     "completion_tokens": 0, "startTime": "2025-11-16T18:15:50.000Z", "endTime": "2025-11-16T18:15:51.000Z",
     "completionStartTime": None, "model": "", "model_group": "chat", "user": "", "team_id": None,
     "metadata": {"status": "failure"}, "cache_hit": "None", "status": "failure"},
    {"request_id": "hit", "call_type": "acompletion", "api_key": "88dc", "total_tokens": 9, "prompt_tokens": 4,
     "completion_tokens": 5, "startTime": "2025-11-16T18:15:49.000Z", "endTime": "2025-11-16T18:15:49.010Z",
     "completionStartTime": "2025-11-16T18:15:49.010Z", "model": "m", "model_group": "chat", "user": "ann",
     "team_id": "red", "metadata": {}, "cache_hit": "True", "status": "success"},
    {"request_id": "b", "call_type": "acompletion", "api_key": "88dc", "total_tokens": 30, "prompt_tokens": 10,
     "completion_tokens": 20, "startTime": "2025-11-16T18:15:48.500Z", "endTime": "2025-11-16T18:15:52.500Z",
     "completionStartTime": "2025-11-16T18:15:48.750Z", "model": "m", "model_group": "chat", "user": "bob",
     "team_id": None, "metadata": {}, "cache_hit": "False", "status": "success"},
    {"request_id": "a", "call_type": "acompletion", "api_key": "88dc", "total_tokens": 3, "prompt_tokens": 1,
     "completion_tokens": 2, "startTime": "2025-11-16T18:15:46.500Z", "endTime": "2025-11-16T18:15:47.000Z",
     "completionStartTime": "2025-11-16T18:15:46.600Z", "model": "m", "model_group": "chat", "user": "ann",
     "team_id": "red", "metadata": {}, "cache_hit": "", "status": "success"},
]  # fmt: skip


def litellm(tmp_path, form):
    path = tmp_path / f"spend.{form}"
    if form == "json":
        path.write_text(json.dumps(LITELLM))
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in LITELLM))
    else:  # as psql's \copy writes it: other words for times and for nothing
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(LITELLM[0]))
            writer.writeheader()
            for row in LITELLM:
                times = {k: v.replace("T", " ").rstrip("Z") for k, v in row.items() if k.endswith("Time") and v}
                writer.writerow({**row, **times, "metadata": json.dumps(row["metadata"])})
    return path


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_litellms_spend_logs(tmp_path, form):
    log = Log(litellm(tmp_path, form), RECIPES["litellm"])
    first, second, third = log
    assert (first.arrival, second.arrival, third.arrival) == pytest.approx((0.0, 2.0, 3.5))
    assert (first.input_tokens, first.output_tokens, first.outcome) == (1, 2, "done")
    assert [row.tenant for row in (first, second, third)] == ["red", "bob", "88dc"]
    assert (second.first_s, second.total_s) == pytest.approx((0.25, 4.0))
    assert (third.outcome, third.first_s, third.service) == ("failed", None, "chat")
    assert log.left_out == 1  # answered from the cache: no model ever saw it
    assert log.header.epoch == pytest.approx(1763316946.5)
    write_trace(tmp_path / "o.jsonl", Log(litellm(tmp_path, form), RECIPES["litellm"]))
    written = open_own(tmp_path / "o.jsonl")
    assert written.header == log.header
    assert list(written) == [first, second, third]


def test_a_recipe_takes_what_an_older_version_has(tmp_path):
    rows = [{k: v for k, v in row.items() if k not in ("status", "completionStartTime")} for row in LITELLM]
    (tmp_path / "o.json").write_text(json.dumps(rows))
    found = list(Log(tmp_path / "o.json", RECIPES["litellm"], must=Columns()))
    assert [(row.outcome, row.first_s) for row in found] == [(None, None)] * 3
    with pytest.raises(ConfigError, match="no row has a value under 'completionStartTime'"):
        list(Log(tmp_path / "o.json", RECIPES["litellm"]))


def write(tmp_path, *rows):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_arrival_from_end_and_duration_in_milliseconds(tmp_path):
    path = write(tmp_path, {"t": 1763316950, "ms": 1500, "u": {"in": 3}}, {"t": 1763316949, "ms": 2500, "u": {"in": 4}})
    where = Columns(end="t", duration="ms", durations_in_ms=True, input_tokens="u.in", ttft="ms")
    rows = list(Log(path, where))
    assert [(row.arrival, row.input_tokens, row.total_s, row.first_s) for row in rows] == [
        (0.0, 4, 2.5, 2.5),
        (2.0, 3, 1.5, 1.5),
    ]


def test_a_log_that_counts_from_its_own_start_has_no_epoch(tmp_path):
    log = Log(write(tmp_path, {"at": 5.0}, {"at": 7.5}), Columns(arrival="at"))
    assert [row.arrival for row in log] == [0.0, 2.5]
    assert log.header.epoch == 0.0


def test_tenants_may_be_hidden(tmp_path):
    path = write(tmp_path, {"at": 1, "who": "a@x.org"}, {"at": 2, "who": "b@x.org"}, {"at": 3, "who": "a@x.org"})
    assert [row.tenant for row in Log(path, Columns(arrival="at", tenant="who"), hide_tenants=True)] == [
        "t1",
        "t2",
        "t1",
    ]


def test_any_order_and_size(tmp_path, monkeypatch):
    monkeypatch.setattr(sorting, "BLOCK", 10)
    path = write(tmp_path, *({"at": at * 37 % 101} for at in range(101)))
    assert [row.arrival for row in Log(path, Columns(arrival="at"))] == [float(at) for at in range(101)]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [("success", "done"), (200, "done"), ("204", "done"), (429, "shed"), ("504", "expired"), ("499", "cancelled"),
     ("timeout", "expired"), (500, "failed"), ("failure", "failed"), (None, None), ("", None)],
)  # fmt: skip
def test_how_it_ended(tmp_path, status, outcome):
    path = write(tmp_path, {"at": 1, "s": status}, {"at": 2, "s": "ok"})
    assert next(iter(Log(path, Columns(arrival="at", status="s")))).outcome == outcome


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"at": "soon"}, "line 2: column '[a-z_]+': 'soon' is no time"),
        ({"at": None}, "line 2: no arrival: nothing under 'at'"),
        ({"at": 5, "in": "many"}, "line 2: column '[a-z_]+': 'many' is no number"),
        ({"at": 5, "in": -1}, "line 2: `input_tokens` is -1"),
        ({"at": 5, "end": 4}, "line 2: it ends 1 s before it arrives"),
    ],
)
def test_a_malformed_record_is_named_or_counted(tmp_path, row, says):
    path = write(tmp_path, {"at": 1, "in": 2, "end": 3}, row)
    where = Columns(arrival="at", input_tokens="in", end="end")
    with pytest.raises(ConfigError, match=says):
        list(Log(path, where))
    log = Log(path, where, skip_bad=True)
    assert len(list(log)) == 1
    assert log.skipped == 1


def test_a_column_that_no_record_has_is_an_error(tmp_path):
    path = write(tmp_path, {"at": 1, "tokens_in": 2})
    with pytest.raises(ConfigError, match="no row has a value under 'token_in'; did you mean 'tokens_in'"):
        list(Log(path, Columns(arrival="at", input_tokens="token_in")))
    with pytest.raises(ConfigError, match="no row has a value under 'tokens'"):
        list(Log(path, Columns(arrival="at", without=("tokens=3",))))
    assert len(list(Log(path, Columns(arrival="at", input_tokens="token_in,tokens_in")))) == 1


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({}, "when did requests arrive"),
        ({"end": "e"}, "when did requests arrive"),
        ({"arrival": "a", "zone": "Mars/North"}, "zone 'Mars/North' is not known"),
        ({"arrival": "a", "only": ("x",)}, "'x' is no condition"),
        ({"arrival": "a", "times": "sec"}, "times are 'sec'"),
    ],
)
def test_what_cannot_be_meant(tmp_path, where, says):
    with pytest.raises(ConfigError, match=says):
        Log(tmp_path / "x", Columns(**where))
