"""A model of your own: `MODEL=/models/my-model.gguf foreserve serve examples/own_model.py --dry-run`, then without it.

MODEL is a GGUF file or a Hugging Face folder. What it is turned into for the engine is kept in FORESERVE_CACHE.
"""

import os

import foreserve as fs

mine = fs.LLM(
    os.environ.get("MODEL", "smollm2"),
    weights="q8_0",  # half the memory of f16, a little less exact
    max_running=8,  # sequences at once; more share the same speed
    kv_cache_gb=2.0,  # memory of their contexts
    default_max_tokens=512,
    queue={"max_waiting": 64, "max_wait_s": 20},  # beyond this a request is refused at once, with Retry-After
)

app = fs.App(mine=mine, server={"port": 8000})
