"""What a service would have learned by answering the training part of a mix, written into its state folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.mixes import Ask
from foreserve.engines.generation import Generate
from foreserve.foresight.length import Ended
from foreserve.foresight.length_features import featurise
from foreserve.foresight.length_history import History
from foreserve.samples import Keep, Sample, SampleStore, Trained
from foreserve.services.llm_asked import asked_of_chat
from foreserve.services.training import Job, run

SERVICE: Final = "chat"
"""The service's name in the benchmark's app."""


def learn(asks: Sequence[Ask], folder: Path, max_tokens: int) -> list[str]:
    """Keep a sample of each answer in `folder` and train the fast tier's model; what was judged of it, in words.

    No text and no true length of any other request gets there.
    """
    keep = Keep(rows=len(asks), days=1.0)
    store = SampleStore.open(folder, {SERVICE: keep})
    history = History()
    try:
        for ask in asks:
            ended = Ended(tokens=ask.output_tokens)
            payload = Generate(prompt=[0] * ask.prompt_tokens, max_tokens=max_tokens)
            asked = asked_of_chat(ask.messages, payload, ask.tenant)
            features = featurise([asked], None, history)[0]
            history.learn_of(features.app, features.tenant, features.input_tokens, ended)
            store.record(
                Sample(
                    service=SERVICE,
                    tenant=ask.tenant,
                    at=time.time(),
                    features=features.to_bytes(),
                    tokens=ended.tokens,
                )
            )
        store.flush()
        job = Job(
            service=SERVICE,
            folder=str(folder),
            features="all",
            tiers=("fast",),
            most_rows=keep.rows,
            store=str(store.path),
        )
        result = run(job)
        store.set_trained(SERVICE, Trained(at=time.time(), newest=result.newest))
        return [f"{judged.tier} of {judged.rows} answers: {judged.why}" for judged in result.judged]
    finally:
        store.close()
