"""`foreserve bench`: send a measured load to any OpenAI-compatible server and say what came back."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer
import uvloop
from rich.console import Console

from foreserve.cli import bench_options as words
from foreserve.cli.bench_options import Load, Process
from foreserve.cli.bench_report import ProgressBar, Report
from foreserve.errors import ConfigError
from foreserve.loadgen import arrivals as arriving
from foreserve.loadgen import prompts as prompting
from foreserve.loadgen.client import Client, ClientOptions, first_model
from foreserve.loadgen.run import Limits, Run, run
from foreserve.loadgen.stats import Targets, WarmUp, summarise

T = TypeVar("T")

MAX_REQUESTS = 1_000_000
MAX_DURATION_S = 3600.0


_LOAD, _REQUEST, _LIMIT, _TARGET, _OUT = "Load", "Requests", "Limits", "Targets", "Output"


def bench(
    url: Annotated[str, typer.Argument(help="The server's address, with or without /v1.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Model to ask; default: the first that the server lists.")] = None,
    arrivals: Annotated[
        Process | None,
        typer.Option(
            help="Arrival process; default: trace with --trace, closed with --clients, gamma with --cv, else poisson.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Mean requests a second (default 1); a trace is scaled to it.", rich_help_panel=_LOAD),
    ] = None,
    cv: Annotated[
        float | None,
        typer.Option(help="Coefficient of variation of gamma gaps: above 1 is bursty.", rich_help_panel=_LOAD),
    ] = None,
    clients: Annotated[
        int | None, typer.Option(help="Closed loop: clients that each have one request running.", rich_help_panel=_LOAD)
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Trace of arrival times and lengths, in any format of docs/traces.md; perhaps .xz or .gz.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    rate_scale: Annotated[
        float, typer.Option(help="Play the trace this many times as fast.", rich_help_panel=_LOAD)
    ] = 1.0,
    trace_lengths: Annotated[
        bool, typer.Option(help="Ask for the trace's output tokens as max_tokens.", rich_help_panel=_LOAD)
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of arrivals, shuffling and retry jitter.", rich_help_panel=_LOAD)] = 0,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="JSONL with prompt or messages, perhaps max_tokens and tenant; perhaps .xz or .gz. "
            "Default: twenty of our own.",
            rich_help_panel=_REQUEST,
        ),
    ] = None,
    shuffle: Annotated[bool, typer.Option(help="Shuffle the prompts with the seed.", rich_help_panel=_REQUEST)] = False,
    endpoint: Annotated[str, typer.Option(help="chat or completions.", rich_help_panel=_REQUEST)] = "chat",
    stream: Annotated[
        bool, typer.Option(help="Stream answers; without it there is no TTFT.", rich_help_panel=_REQUEST)
    ] = True,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="max_tokens of every request, in tokens. [default: the prompts' own]", rich_help_panel=_REQUEST
        ),
    ] = None,
    extra: Annotated[
        str | None,
        typer.Option(help="JSON object added to every body, as '{\"temperature\": 0}'.", rich_help_panel=_REQUEST),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(help="'Name: value', sent with every request.", rich_help_panel=_REQUEST)
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with the key to send as bearer token.", rich_help_panel=_REQUEST),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="x-tenant of prompts that bring none.", rich_help_panel=_REQUEST)
    ] = None,
    retries: Annotated[
        int,
        typer.Option(
            help="Retries of a failed request, as OpenAI's client does (it does 2).", rich_help_panel=_REQUEST
        ),
    ] = 0,
    requests: Annotated[
        int | None,
        typer.Option(
            help="Requests to send; default: the trace's, a million with --duration, else 100.", rich_help_panel=_LIMIT
        ),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Seconds to send for; default at most 3600.", rich_help_panel=_LIMIT)
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that one attempt may take as a whole.", rich_help_panel=_LIMIT)
    ] = 300.0,
    connect_timeout: Annotated[
        float, typer.Option(help="Seconds that a connection may take.", rich_help_panel=_LIMIT)
    ] = 10.0,
    drain: Annotated[
        float,
        typer.Option(help="Seconds to wait for running requests once sending has ended.", rich_help_panel=_LIMIT),
    ] = 120.0,
    max_in_flight: Annotated[
        int, typer.Option(help="Most requests at once; later ones are sent late.", rich_help_panel=_LIMIT)
    ] = 1024,
    warmup: Annotated[
        int, typer.Option(help="First requests that are left out of the figures.", rich_help_panel=_TARGET)
    ] = 0,
    warmup_s: Annotated[
        float, typer.Option(help="Seconds at the start that are left out of the figures.", rich_help_panel=_TARGET)
    ] = 0.0,
    slo_ms: Annotated[
        float | None,
        typer.Option(help="Goodput: end-to-end latency to keep, in milliseconds.", rich_help_panel=_TARGET),
    ] = None,
    ttft_slo_ms: Annotated[
        float | None, typer.Option(help="Goodput: TTFT to keep, in milliseconds.", rich_help_panel=_TARGET)
    ] = None,
    tpot_slo_ms: Annotated[
        float | None, typer.Option(help="Goodput: TPOT to keep, in milliseconds.", rich_help_panel=_TARGET)
    ] = None,
    send_slo: Annotated[
        bool, typer.Option(help="Tell the server: send --slo-ms as x-slo-ms.", rich_help_panel=_TARGET)
    ] = False,
    json: Annotated[
        str | None, typer.Option(help="Write the figures as JSON to a file, or to - (stdout).", rich_help_panel=_OUT)
    ] = None,
    records: Annotated[
        Path | None, typer.Option(help="Write one JSON line for each request to a file.", rich_help_panel=_OUT)
    ] = None,
    quiet: Annotated[bool, typer.Option(help="No progress bar and no table.", rich_help_panel=_OUT)] = False,
) -> None:
    """Send a load to an OpenAI-compatible server, ours or another's, and measure it.

    Prints TTFT, TPOT, ITL and end-to-end latency, throughput, goodput and refusals; docs/metrics.md defines them.
    Exit status: 0, or 1 when not one request was answered, or 2 when an option is wrong.
    """
    console = Console(stderr=json == "-")
    try:
        for where in (json if json != "-" else None, records):
            words.check_writable(where)
        targets = Targets(e2e=_seconds(slo_ms), ttft=_seconds(ttft_slo_ms), tpot=_seconds(tpot_slo_ms))
        warm_up = WarmUp(warmup, warmup_s)
        load = Load(
            process=words.process_meant(arrivals, trace, clients, cv),
            rate=rate,
            cv=cv,
            clients=clients,
            trace=None if trace is None else str(trace),
            rate_scale=rate_scale,
            trace_lengths=trace_lengths,
            prompts=None if prompts is None else str(prompts),
            shuffle=shuffle,
            seed=seed,
        )
        for_arrivals, for_order, for_jitter = arriving.generator(seed).spawn(3)
        times = words.arrival_times(load, for_arrivals)
        questions = prompting.built_in() if prompts is None else prompting.load(prompts)
        if shuffle:
            questions = [questions[index] for index in for_order.permutation(len(questions))]
        most = len(times) if isinstance(times, list) else (100 if duration is None else MAX_REQUESTS)
        limits = Limits(
            requests=most if requests is None else requests,
            duration_s=MAX_DURATION_S if duration is None else duration,
            drain_s=drain,
            max_in_flight=max_in_flight,
        )
        options = ClientOptions(
            url=url,
            model=model or "",
            endpoint=words.endpoint_named(endpoint),
            stream=stream,
            max_tokens=max_tokens,
            extra=words.extra_fields(extra),
            headers=words.header_fields(header or [], api_key_env, slo_ms, send_slo),
            tenant=tenant,
            timeout_s=timeout,
            connect_s=connect_timeout,
            retries=retries,
        )
        with ProgressBar(console, limits, quiet) as bar:
            options, outcome = _in_loop(_measure(options, questions, times, limits, trace_lengths, for_jitter, bar))
    except ConfigError as error:
        Console(stderr=True).print(f"foreserve bench: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(2) from None
    report = Report(options, limits, targets, warm_up, summarise(outcome.results, targets, warm_up), outcome)
    if not quiet:
        console.print(report.table())
    for note in report.notes():
        Console(stderr=True).print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if json is not None:
        _write(json, report.as_json(msgspec.to_builtins(load)))
    if records is not None:
        _write(str(records), report.records())
    if not report.summary.done:
        raise typer.Exit(1)


async def _measure(
    options: ClientOptions,
    prompts: list[prompting.Prompt],
    times: Iterable[arriving.Arrival] | arriving.ClosedLoop,
    limits: Limits,
    trace_lengths: bool,
    jitter: arriving.Generator,
    bar: ProgressBar,
) -> tuple[ClientOptions, Run]:
    """The run, and the options with the model that was asked. Ctrl-C ends it early; what was measured stands."""
    if not options.model:
        model = await first_model(options.url, options.headers, options.connect_s)
        options = msgspec.structs.replace(options, model=model)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    async with Client(options, jitter) as client:
        return options, await run(
            client, prompts, times, limits, trace_lengths=trace_lengths, on_progress=bar.show, stop=stop
        )


def _in_loop(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


def _write(where: str, data: bytes) -> None:
    if where == "-":
        sys.stdout.write(data.decode())
    else:
        Path(where).write_bytes(data)
