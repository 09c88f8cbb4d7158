"""What our server costs: the same engine driven directly, through our server, and a server of the field beside it.

The engine has one core, the gateway and the client the other; the direct run has the engine's core alone. The sides
take turns within each repetition. Prompts are real, their token counts equal on both sides; 32 to 96 tokens are forced.
Throughput is counted from the first request to the start of the last, that is while all clients have one running.

The peer is llama.cpp's server (`pip install xllamacpp`) on the same weights (f16), one thread, as many slots.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import uvloop

from benchmarks.common import Report, arguments, bars, picture, ratios
from benchmarks.data import samples
from benchmarks.load import send_now
from benchmarks.servers import foreserve, free_port, on_cores, running
from foreserve.loadgen.arrivals import ClosedLoop, generator
from foreserve.loadgen.client import Client, ClientOptions
from foreserve.loadgen.prompts import Prompt
from foreserve.loadgen.records import Result
from foreserve.loadgen.run import Limits, run
from foreserve.loadgen.stats import summarise
from foreserve.services.llm import LLM
from foreserve.services.llm_text import Text

ENGINE, REST = {0}, {1}
PEER_MODEL = "any"
SLOTS = 16
BATCHED_TOKENS = 512
KV_GB = 1.0

APP = f"""
import foreserve as fs
app = fs.App(
    chat=fs.LLM("smollm2", engine="openvino", threads=1, max_running={SLOTS}, max_batched_tokens={BATCHED_TOKENS},
                kv_cache_gb={KV_GB}, prefix_caching=False, queue={{"max_wait_s": 600.0}}),
    state={{"history": False}},
)
"""

PEER = """
import sys, time, xllamacpp as xlc
p = xlc.CommonParams()
p.model.path = sys.argv[1]
p.port = int(sys.argv[2]); p.hostnames = ["127.0.0.1"]
p.n_parallel = {slots}; p.n_ctx = {slots} * 1024; p.warmup = True
p.cpuparams.n_threads = 1; p.cpuparams_batch.n_threads = 1
p.cache_ram_mib = 0; p.n_threads_http = 2 * {slots}
server = xlc.Server(p)
while True: time.sleep(3600)
"""


class Direct:
    """The baseline's process (see `direct`)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in: IO[str] = process.stdin
        self._out: IO[str] = process.stdout
        self._read()

    def run(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int], concurrency: int) -> dict[str, Any]:
        self._in.write(json.dumps({"prompts": prompts, "max_tokens": lengths, "concurrency": concurrency}) + "\n")
        self._in.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._out.readline() or "{}")
        if not answer:
            raise RuntimeError("the direct engine ended")
        return answer


@contextmanager
def direct(folder: Path, kv_blocks: int) -> Iterator[Direct]:
    """The baseline on the engine's core, ready."""
    command = [sys.executable, "-m", "benchmarks.direct", str(folder), str(SLOTS), str(BATCHED_TOKENS), str(kv_blocks)]
    with on_cores(ENGINE):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Direct(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def options(url: str, model: str) -> ClientOptions:
    """Greedy text completions of a forced length."""
    extra = {"ignore_eos": True, "temperature": 0}
    # The peer ends idle connections in the middle of a client's next request.
    headers = {"connection": "close"} if model == PEER_MODEL else {}
    return ClientOptions(url=url, model=model, endpoint="completions", extra=extra, headers=headers)


def throughput(url: str, model: str, prompts: Sequence[str], lengths: Sequence[int], clients: int) -> float:
    """Output tokens a second of a closed loop over `prompts`, once each, while all `clients` have a request running."""
    return full_house(answers(url, model, prompts, lengths, clients))


def answers(url: str, model: str, prompts: Sequence[str], lengths: Sequence[int], clients: int) -> list[Result]:
    """A closed loop over `prompts`, once each. Raises RuntimeError where an answer is not as long as was asked."""
    made = [Prompt(prompt=prompt, max_tokens=n) for prompt, n in zip(prompts, lengths, strict=True)]
    limits = Limits(requests=len(made), duration_s=900.0)
    results = send_now(options(url, model), made, ClosedLoop(clients), limits).results
    wrong = [result for result in results if result.ending != "done"]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(results)} requests did not end well: {wrong[0].error}")
    summary = summarise(results)
    if summary.output_tokens != sum(lengths):
        raise RuntimeError(f"{summary.output_tokens} tokens came, {sum(lengths)} were asked")
    return results


def full_house(results: Sequence[Result]) -> float:
    """Output tokens a second from the first request to the start of the last."""
    start, last = min(r.sent for r in results), max(r.sent for r in results)
    tokens = sum(r.output_tokens * sum(t <= last for t in r.output_times) / len(r.output_times) for r in results)
    return tokens / (last - start)


async def added_ttft(
    url: str, engine: Direct, text: Text, prompts: Sequence[str], ids: Sequence[Sequence[int]]
) -> list[float]:
    """Seconds that the first token comes later through the server, prompt by prompt, one client on one connection.

    Both engines rest while the other works, so neither has the warmer core. A prompt whose first token has no text (an
    end token that is ignored, half a character) is passed over: its client would see the second one.
    """
    added: list[float] = []
    async with Client(options(url, "chat"), generator(0)) as client:
        for prompt, tokens in zip(prompts, ids, strict=True):
            base = engine.run([tokens], [4], 1)
            if not text.detokenizer().feed(base["first"]):
                continue
            one = [Prompt(prompt=prompt, max_tokens=4)]
            result = (await run(client, one, ClosedLoop(1), Limits(requests=1))).results[0]
            if result.first is None:
                raise RuntimeError(f"no answer: {result.error}")
            added.append(result.first - result.sent - base["ttft"][0])
    return added[1:]  # the first one opened the connection


def main() -> None:
    """Run it."""
    args = arguments(__doc__)
    repetitions, requests, single = (1, 32, 8) if args.quick else (5, 96, 48)
    settings = {"slots": SLOTS, "requests": requests, "max_tokens": "32 to 96", "repetitions": repetitions}
    report = Report("overhead", settings | {"model": "SmolLM2-135M-Instruct f16", "engine_threads": 1})
    kind = LLM("smollm2", engine="openvino", threads=1, max_running=SLOTS, kv_cache_gb=KV_GB)
    kind.prepare()
    engine_options = kind.engines()[0].options
    folder = Path(engine_options["cache_dir"]) / "model.openvino"
    texts = [sample.prompt for sample in samples("sharegpt", single + requests * repetitions, report, max_chars=600)]
    ids = [kind.text.encode(text) for text in texts]
    # Of different lengths, or all slots would fall free in the same step.
    lengths = [int(n) for n in np.random.default_rng(0).integers(32, 97, size=len(texts))]
    turns = [slice(start, start + requests) for start in range(single, len(texts), requests)]
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    ours: list[float] = []
    alone: list[float] = []
    peer: list[float] = []
    with ExitStack() as stack:
        app = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "app.py"
        app.write_text(APP)
        server = stack.enter_context(foreserve(str(app), cores=REST, engine_cores=ENGINE))
        facts = json.loads((folder / "foreserve.json").read_text())
        engine = stack.enter_context(direct(folder, int(KV_GB * 2**30) // int(facts["kv_block_bytes"])))
        stack.enter_context(on_cores(REST))
        throughput(server.url, "chat", texts[:4], [8] * 4, 4)
        engine.run(ids[:4], [8] * 4, 4)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            added = runner.run(added_ttft(server.url, engine, kind.text, texts[:single], ids[:single]))
        for part in turns:
            base = engine.run(ids[part], lengths[part], SLOTS)
            alone.append(base["tokens"] / base["seconds"])
            ours.append(throughput(server.url, "chat", texts[part], lengths[part], SLOTS))

    if importlib.util.find_spec("xllamacpp"):
        port = free_port()
        command = [sys.executable, "-c", PEER.format(slots=SLOTS), engine_options["model_path"], str(port)]
        with running(command, port, ready="/health", cores=ENGINE) as server, on_cores(REST):
            throughput(server.url, PEER_MODEL, texts[:4], [8] * 4, 4)
            peer = [throughput(server.url, PEER_MODEL, texts[part], lengths[part], SLOTS) for part in turns]
        report.note("the peer is llama.cpp's server as packaged by xllamacpp: an AVX2 build, CPU only")
        report.add("tokens_vs_peer", ratios(ours, peer), "above 1")
        report.add("peer_tokens_per_s", peer)
    else:
        report.note("no peer was measured: pip install xllamacpp")
    report.add("tokens_vs_direct", ratios(ours, alone), "at least 0.95")
    report.add("added_ttft_p50_ms", [seconds * 1000 for seconds in added], "below 5")
    report.add("tokens_per_s", ours)
    report.add("direct_tokens_per_s", alone)
    sides = {"engine alone": alone, "Foreserve": ours} | ({"llama.cpp": peer} if peer else {})
    with picture("overhead", f"Output tokens a second, {SLOTS} clients, one engine core") as axes:
        bars(axes[0], sides, "tokens/s")
    report.finish(args.json)


if __name__ == "__main__":
    main()
