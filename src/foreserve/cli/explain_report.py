"""The tables of `foreserve explain`: predicted and actual figures side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from foreserve.cli.explain_words import number, output_tokens, ran_s, seconds, surprises, when
from foreserve.state import Past

_DASH = "—"


def request_table(past: Past) -> Group:
    """Of one request: figures in two columns, then how it came about."""
    figures = _table("", ("predicted", "right"), ("actual", "right"))
    for row in (*_lengths(past), *_times(past)):
        figures.add_row(*row)
    facts = Table.grid("", "", padding=(0, 2))
    for name, value in _facts(past):
        if value:
            facts.add_row(name, Text(value))
    return Group(figures, facts)


def _lengths(past: Past) -> list[tuple[str, str, str]]:
    usage = past.usage
    forecast = past.forecast if past.forecast is not None and past.forecast.most_tokens else None
    rows = []
    if forecast is not None or "prompt_tokens" in usage:
        foreseen = _DASH if forecast is None else number(forecast.input_tokens)
        rows.append(("prompt, tokens", foreseen, _amount(usage.get("prompt_tokens"))))
    if forecast is not None or "output_tokens" in usage:
        foreseen = _DASH
        if forecast is not None:
            output = forecast.output
            foreseen = f"p50 {number(output.p50)} · p80 {number(output.p80)} · p95 {number(output.p95)}"
        cut = " (cut by its limit)" if past.finish == "length" else ""
        rows.append(("answer, tokens", foreseen, _amount(output_tokens(past)) + cut))
        if forecast is not None:
            rows.append(("  mean, limit", f"{number(forecast.output.mean)}, {forecast.most_tokens}", ""))
    return rows


def _times(past: Past) -> list[tuple[str, str, str]]:
    """The wait is ours. The first chunk ends prefill, engines' own queues included."""
    expected = _DASH if past.forecast is None else seconds(past.forecast.seconds)
    rows = [("in the queue", "", seconds(past.wait_s)), ("on the replica", expected, seconds(ran_s(past)))]
    if past.wait_s is not None and past.first_s is not None:
        prefill, decode = (" (prefill)", " (decode)") if _has_tokens(past) else ("", "")
        rows.append((f"  to the first chunk{prefill}", "", seconds(past.first_s - past.wait_s)))
        rows.append((f"  from there on{decode}", "", seconds(past.total_s - past.first_s)))
    return [*rows, ("in all", "", seconds(past.total_s))]


def _has_tokens(past: Past) -> bool:
    """Whether it was of a language model, as far as its forecast tells."""
    return past.forecast is None or past.forecast.most_tokens > 0


def _facts(past: Past) -> list[tuple[str, str]]:
    waited = f"{past.ahead} waited when it came" if past.ahead or (past.ahead is not None and past.wait_s) else ""
    waited += f", {past.before} were started before it" if waited and past.wait_s is not None else ""
    cost = ", ".join(f"{number(amount)} {name}" for name, amount in past.cost.items())
    ended = past.kind + (f" ({past.code})" if past.code else "") + (f", {past.finish}" if past.finish else "")
    return [
        ("ended", f"{ended}, {when(past)}"),
        ("reason", past.reason),
        ("waited for", waited),
        ("policy", past.why),
        ("replica", past.replica or "none"),
        ("started together with", ", ".join(past.beside or ())),
        ("ran there already", "" if past.running is None else str(past.running)),
        ("attempts", str(past.attempt + 1)),
        ("price", cost),
        ("foreseen by", "" if past.forecast is None else past.forecast.output.source),
        ("part of", past.parent or ""),
    ]


def newest_table(found: Sequence[Past]) -> Table:
    """A line for each of several requests."""
    table = _table(
        "request", ("service", "left"), ("ended", "left"), ("waited", "right"), ("ahead", "right"), ("before", "right"),
        ("ran", "right"), ("expected", "right"), ("tokens", "right"), ("p50", "right"), ("p80", "right"), ("", "left"),
    )  # fmt: skip
    for past in found:
        table.add_row(*_line(past))
    return table


def parts_table(parts: Sequence[Past]) -> Table:
    """The parts of one request."""
    table = newest_table(parts)
    table.title, table.title_justify = "its parts", "left"
    return table


def _line(past: Past) -> list[str | Text]:
    forecast = past.forecast
    foreseen = [_DASH] * 3
    if forecast is not None:
        foreseen = [seconds(forecast.seconds), number(forecast.output.p50), number(forecast.output.p80)]
        foreseen[1:] = foreseen[1:] if forecast.most_tokens else [_DASH] * 2
    expected, p50, p80 = foreseen
    return [
        Text(past.id), Text(past.service), Text(past.kind, "" if past.kind == "done" else "red"), seconds(past.wait_s),
        _amount(past.ahead), _amount(past.before), seconds(ran_s(past)), expected, _amount(output_tokens(past)), p50,
        p80, Text(_remark(past)),
    ]  # fmt: skip


def _remark(past: Past) -> str:
    """What stands out, in few words."""
    if past.kind != "done":
        return past.code
    surprising = surprises(past)
    return surprising[0].removeprefix("The answer was ").rstrip(".") if surprising else ""


def _amount(value: float | None) -> str:
    return _DASH if value is None else number(value)


def _table(first: str, *columns: tuple[str, str]) -> Table:
    table = Table()
    table.add_column(first, overflow="fold")
    for name, side in columns:
        table.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
    return table
