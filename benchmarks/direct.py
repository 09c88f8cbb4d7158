"""The embedded engine driven by itself, with nothing of ours between: the baseline of `overhead`.

A process of its own that reads one JSON line a run (`{"prompts": [[ids]], "max_tokens": [n], "concurrency": n}`) and
answers with one (`{"seconds": s, "tokens": n, "ttft": [s], "first": [ids]}`). It keeps `concurrency` requests in the
pipeline; seconds and tokens are counted until the last one has been added.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def serve(folder: str, slots: int, max_batched_tokens: int, kv_blocks: int) -> None:
    """Until standard input ends."""
    import numpy
    import openvino
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = kv_blocks
    scheduler.max_num_seqs = slots
    scheduler.max_num_batched_tokens = max_batched_tokens
    scheduler.enable_prefix_caching = False
    pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": 1})
    print(json.dumps({"ready": True}), flush=True)
    number = 0
    for line in sys.stdin:
        run: dict[str, Any] = json.loads(line)
        waiting = list(zip(run["prompts"], run["max_tokens"], strict=True))[::-1]
        handles: dict[int, tuple[Any, float]] = {}
        ttft: dict[int, float] = {}
        firsts: list[int] = []
        full: dict[str, float] = {}
        tokens = 0
        began = time.perf_counter()
        while waiting or handles:
            while waiting and len(handles) < run["concurrency"]:
                prompt, length = waiting.pop()
                config = genai.GenerationConfig()
                config.apply_chat_template = False
                config.max_new_tokens = length
                config.ignore_eos = True
                config.do_sample = False
                number += 1
                ids = openvino.Tensor(numpy.array([prompt], dtype=numpy.int64))
                handles[number] = (pipeline.add_request(number, ids, config), time.perf_counter())
            pipeline.step()
            for request, (handle, added) in list(handles.items()):
                while handle.can_read():
                    for output in handle.read().values():
                        if request not in ttft:
                            ttft[request] = time.perf_counter() - added
                            firsts.append(output.generated_ids[0])
                        tokens += len(output.generated_ids)
                if handle.get_status() != genai.GenerationStatus.RUNNING:
                    del handles[request]
            if waiting or not full:
                full = {"seconds": time.perf_counter() - began, "tokens": tokens}
        answer = full | {"ttft": list(ttft.values()), "first": firsts}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
