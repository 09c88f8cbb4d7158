"""What is to be said of a request that has ended: facts of its row in words, and the sums of many. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime

import msgspec

from foreserve.core import Length
from foreserve.state import Past

SURPRISING = 1.5
"""From this many times what was foreseen on, a difference is put in words."""

WORTH_A_WORD_S = 0.1
"""Less surprises nobody, however many times as long it was."""

AT_ONCE_S = 0.01

_PREDICTORS = {"histogram": "from the lengths of others like it"}

_AGAIN = {
    "replica lost": "its replica was lost before",
    "replica left": "its replica was to end before",
    "out of memory": "its batch had run out of memory before",
    "server full": "the server had no room for it before",
    "server loading": "the server was not ready before",
    "broken off": "the server broke off before it had answered",
}
"""By `Outcome.again`."""
_RESUMED = ", resumed"


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What came of several requests. `foreseen` of them had a forecast and a length to compare it with.

    `within_p80` is a share; errors are absolute and medians: of tokens against p50, of seconds on the replica against
    those that were expected. `cut` answers ended at their limit: how long they would have been is not known, so they
    count only where they were longer than foreseen all the same.
    """

    requests: int
    endings: dict[str, int]
    foreseen: int
    cut: int
    within_p80: float | None
    error_tokens: float | None
    timed: int
    error_s: float | None
    wait_s: float | None


def output_tokens(past: Past) -> float | None:
    """How long its answer was, `None` where no tokens were counted."""
    return past.usage.get("output_tokens")


def ran_s(past: Past) -> float | None:
    """Seconds on its replica, from start to end."""
    return None if past.wait_s is None else past.total_s - past.wait_s


_HOW = {
    "cancelled": "was cancelled by its client",
    "shed": "was refused",
    "expired": "was too late, and ended",
}
"""How a request ended that was not done; one that failed, failed."""


def when(past: Past) -> str:
    """Its end, in this machine's time zone."""
    return datetime.fromtimestamp(past.ended).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def paragraph(past: Past) -> list[str]:
    """The story in sentences."""
    return [_ended(past), *_waited(past), *_ran(past), *_foreseen(past), *surprises(past)]


def _ended(past: Past) -> str:
    tokens = output_tokens(past)
    answer = f" with {_count(tokens, 'token')}" if tokens else ""
    part = f" (a part of {past.parent})" if past.parent else ""
    start = f"Request {past.id}{part} to {past.service}, tenant {past.tenant},"
    if past.kind == "done":
        cut = ", cut off by its limit" if past.finish == "length" else ""
        return f"{start} was done {seconds(past.total_s)} after it came, on {when(past)},{answer}{cut}.".replace(
            ",.", "."
        )
    why = past.reason or "its words are not kept, as they may quote the prompt"
    how = _HOW.get(past.kind, past.kind)
    return f"{start} {how} {seconds(past.total_s)} after it came, on {when(past)}{answer}: {why} ({past.code})."


def _waited(past: Past) -> list[str]:
    if past.wait_s is None:
        # One that was refused at the door was not counted in, so that a zero says nothing.
        others = f"; {past.ahead} waited when it came" if past.ahead else ""
        return [f"No replica was given it{' again' if past.attempt else ''}{others}."]
    if (past.again or "").endswith(_RESUMED):
        return [f"It was first started {seconds(past.wait_s)} after it came."]
    if past.attempt:
        return [f"Its last attempt began {seconds(past.wait_s)} after it came, its earlier ones included."]
    if past.ahead is None or past.before is None:
        return [f"It waited {seconds(past.wait_s)}."]
    if not past.ahead and not past.before:
        if past.wait_s < AT_ONCE_S:
            return ["Nothing waited when it came, and it was started at once."]
        if past.running:
            return [f"Nothing waited when it came, but there was no room for it until {seconds(past.wait_s)} later."]
        # From its arrival: the time in which its prompt was read, tokenised and priced is in it. Which it was that it
        # waited for is not kept.
        own = "its prompt to be prepared" if "prompt_tokens" in past.usage else "its batch to be closed"
        return [f"Nothing waited when it came; it waited {seconds(past.wait_s)} for {own}, or for a replica to start."]
    was = "was" if past.before == 1 else "were"
    others = f"{past.ahead or 'none'} waited when it came, {past.before or 'none'} {was} started before it"
    if past.before > past.ahead:
        others += f", so at least {past.before - past.ahead} that came later went first"
    elif (passed := past.ahead - past.before - len(past.beside or ())) > 0:
        others += f", so at least {passed} of them {'was' if passed == 1 else 'were'} overtaken or left"
    return [f"It waited {seconds(past.wait_s)}: {others}."]


def _ran(past: Past) -> list[str]:
    if past.wait_s is None:
        return []
    mates = ""
    if past.beside:
        shown = ", ".join(past.beside[:3]) + (f" and {len(past.beside) - 3} more" if len(past.beside) > 3 else "")
        mates = f", started together with {shown}"
    company = f", beside {past.running} that ran there already" if past.running else ""
    why = f" The policy's reason: {past.why}." if past.why else ""
    where = "in the server's own process" if past.replica is None else f"on {past.replica}"
    said = [f"It ran {seconds(ran_s(past))} {where}{mates}{company}.{why}"]
    if past.attempt:
        said.append(f"This was attempt {past.attempt + 1}: {_again(past)}.")
    return said


def _again(past: Past) -> str:
    """Why there was more than one attempt, and what became of what had been delivered."""
    if not past.again:
        return "why it was made is not kept"
    why = past.again.removesuffix(_RESUMED)
    rest = "and it went on after what had been delivered" if why != past.again else "with nothing delivered"
    return f"{_AGAIN.get(why, why)}, {rest}"


def _foreseen(past: Past) -> list[str]:
    forecast = past.forecast
    if forecast is None:
        return ["Nothing was foreseen of it."] if past.ahead is not None else []
    if not forecast.most_tokens:
        return [f"Foreseen (by calls in batches of like size): {seconds(forecast.seconds)} on a replica."]
    output = forecast.output
    source = _PREDICTORS.get(output.source, f"by the {output.source} predictor")
    return [
        f"Foreseen ({source}): {number(output.p50)} tokens as likely as not, at most {number(output.p80)} in four of "
        f"five cases, in {seconds(forecast.seconds)} on a replica."
    ]


def surprises(past: Past) -> list[str]:
    """Where it went otherwise than foreseen, by enough to be worth a word."""
    said: list[str] = []
    forecast, tokens, ran = past.forecast, output_tokens(past), ran_s(past)
    whole = past.kind == "done"
    if forecast is not None and tokens and whole:
        output = forecast.output
        if tokens > SURPRISING * output.p80:
            least = "at least " if past.finish == "length" else ""
            said.append(f"The answer was {least}{tokens / output.p80:.1f} times its p80.")
        elif past.finish != "length" and output.p50 > SURPRISING * tokens:
            said.append(f"The answer was {output.p50 / tokens:.1f} times shorter than its p50.")
    if forecast is not None and ran and whole and forecast.seconds > 0:
        more = ran - forecast.seconds
        if ran > SURPRISING * forecast.seconds and more >= WORTH_A_WORD_S:
            said.append(f"It ran {ran / forecast.seconds:.1f} times as long as expected.")
    if past.wait_s is not None and ran and past.wait_s > SURPRISING * ran and past.wait_s >= WORTH_A_WORD_S:
        said.append(f"It waited {past.wait_s / ran:.1f} times as long as it ran.")
    return said


def parts_line(parts: Sequence[Past]) -> str:
    """How a request was served that has parts."""
    worst = [past.kind for past in parts if past.kind != "done"]
    ends = f"{len(worst)} of them not done, which decided its end" if worst else "all of them done"
    return f"It was served as {_count(len(parts), 'part')}, {ends}; its figures are theirs together."


def summary(found: Sequence[Past]) -> Summary:
    """The sums of many."""
    endings: dict[str, int] = {}
    for past in found:
        endings[past.kind] = endings.get(past.kind, 0) + 1
    known = [pair for past in found if past.kind == "done" and (pair := _compared(past)) is not None]
    errors = [abs(tokens - length.p50) for length, tokens in known]
    times = [
        abs(ran - past.forecast.seconds)
        for past in found
        if past.kind == "done" and past.forecast is not None and (ran := ran_s(past)) is not None
    ]
    waits = [past.wait_s for past in found if past.wait_s is not None]
    return Summary(
        requests=len(found),
        endings=endings,
        foreseen=len(known),
        cut=sum(past.finish == "length" for past in found),
        within_p80=sum(tokens <= length.p80 for length, tokens in known) / len(known) if known else None,
        error_tokens=statistics.median(errors) if errors else None,
        timed=len(times),
        error_s=statistics.median(times) if times else None,
        wait_s=statistics.median(waits) if waits else None,
    )


def _compared(past: Past) -> tuple[Length, float] | None:
    """What was foreseen and what came, where the two can be compared."""
    tokens = output_tokens(past)
    if past.forecast is None or tokens is None:
        return None
    if past.finish == "length" and tokens <= past.forecast.output.p80:
        return None
    return past.forecast.output, tokens


def summary_line(figures: Summary) -> str:
    """The summary in one sentence or two."""
    endings = ", ".join(f"{count} {kind}" for kind, count in figures.endings.items())
    said = f"{_count(figures.requests, 'request')}: {endings}"
    if figures.wait_s is not None:
        said += f"; median wait {seconds(figures.wait_s)}"
    if figures.within_p80 is None or figures.error_tokens is None:
        said += ". No length was foreseen that could be compared"
    else:
        share = f"{100 * figures.within_p80:.0f} % within p80"
        said += f". Lengths of {figures.foreseen}: median error {number(figures.error_tokens)} tokens, {share}"
    if figures.error_s is not None:
        said += f"; time of {figures.timed}: median error {seconds(figures.error_s)}"
    return said + (f". {figures.cut} were cut off by their limit." if figures.cut else ".")


def number(value: float) -> str:
    """Tokens: whole ones where that says enough."""
    return f"{value:.0f}" if value >= 10 or value == round(value) else f"{value:.1f}"


def seconds(value: float | None) -> str:
    """A duration in a unit that suits it, and a dash where it never was."""
    if value is None:
        return "—"
    return f"{1000 * value:.0f} ms" if abs(value) < 1 else f"{value:.2f} s"


def _count(amount: float, noun: str) -> str:
    return f"{number(amount)} {noun}" + ("" if amount == 1 else "s")
