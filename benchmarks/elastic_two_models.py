"""Two real models in one worker, of which one is loaded at a time: what serving by switching models pays.

The smaller one is MiniLM's first three layers, with a head of its own for each task. A batch for the model that is not
there loads it first, from its files, in place of the other. Policies know models by settings, so the small one goes by
the name of one (`SMALL`).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from foreserve.core import Chunk, EngineSpec, Work
from foreserve.elastic.adapting import Adapting, Plan
from foreserve.elastic.engine import ElasticEngine
from foreserve.elastic.folder import EncoderFacts, read_folder, read_tasks
from foreserve.elastic.labelled import Labelled
from foreserve.elastic.loading import load
from foreserve.elastic.payload import TaskFacts, Vector
from foreserve.elastic.profile import Profile
from foreserve.models.catalog import locate
from foreserve.services.encoder import Encoder
from foreserve.settings import Environment

SMALL = "merge:1000"
LAYERS = 3


def small_model() -> Path:
    """The smaller model's folder; made where it is not there."""
    folder = Environment.read().cache / "benchmarks" / f"minilm-{LAYERS}"
    if not (folder / "model.safetensors").exists():
        whole = locate("minilm", "elastic").path
        model, _ = load(whole, read_folder(whole), "f32")
        model.encoder.layer = model.encoder.layer[:LAYERS]
        model.config.num_hidden_layers = LAYERS
        # The rest of the folder is the whole model's; its own weights and shape are written last.
        shutil.copytree(whole, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
        model.save_pretrained(folder)
    return folder


def head_alone(name: str, base: Path, train: Labelled, held: Labelled, labels: list[str]) -> TaskFacts:
    """The task on the smaller model, in `base/NAME`; trained where it is not there."""
    folder = small_model()
    facts = read_folder(folder)
    if not (base / name / "task.json").exists():
        model, _ = load(folder, facts, "f32")
        plan = Plan(merges=(), prompts=())
        Adapting(model, folder, facts, train, held, labels, plan, base / name, lambda done, what: None).run()
    return read_tasks(base, facts)[name]


class TwoModels(ElasticEngine):
    """Plans name a model: `plain` is the larger one, `SMALL` the other."""

    def __init__(self, *, small: str, small_facts: Any, small_tasks: Any, **words: Any) -> None:
        super().__init__(**{**words, "settings": ["plain"], "shared_weights": ()})
        tasks = {name: (Path(at), msgspec.convert(told, TaskFacts)) for name, (at, told) in small_tasks.items()}
        self._models = {
            "plain": (self._folder, self._facts, self._task_folders),
            SMALL: (Path(small), msgspec.convert(small_facts, EncoderFacts), tasks),
        }
        self._loaded = "plain"

    async def _measured(self) -> Profile:
        """Of both, one after the other; the larger one is there afterwards."""
        large = await super()._measured()
        await self._off(lambda: self._change(SMALL))
        small = await super()._measured()
        await self._off(lambda: self._change("plain"))
        return msgspec.structs.replace(large, seconds={SMALL: small.seconds["plain"], **large.seconds}, bytes={})

    def _change(self, name: str) -> None:
        if name != self._loaded:
            self._model = self._encoder = None
            self._folder, self._facts, self._task_folders = self._models[name]
            self._load()
            self._loaded = name

    def _encoded(self, works: Sequence[Work], plan: str) -> list[Chunk]:
        self._change(plan)
        return [_as(plan, chunk) for chunk in super()._encoded(works, "plain")]


def _as(plan: str, chunk: Chunk) -> Chunk:
    if not isinstance(chunk.data, Vector):
        return chunk
    return msgspec.structs.replace(chunk, data=msgspec.structs.replace(chunk.data, setting=plan))


class Switched(Encoder):
    """MiniLM's tasks by two models. `small_tasks` is the folder of those of the smaller one."""

    def __init__(self, small_tasks: Path, **words: Any) -> None:
        super().__init__("minilm", **words)
        self._small_tasks = small_tasks

    def engines(self) -> list[EngineSpec]:
        """The engine that holds one of two."""
        folder = small_model()
        facts = read_folder(folder)
        tasks = read_tasks(self._small_tasks, facts)
        told = {name: (str(self._small_tasks / name), msgspec.to_builtins(each)) for name, each in tasks.items()}
        more = {"small": str(folder), "small_facts": msgspec.to_builtins(facts), "small_tasks": told}
        factory = "benchmarks.elastic_two_models:TwoModels"
        return [
            msgspec.structs.replace(spec, factory=factory, options={**spec.options, **more}, weights=(), imports=())
            for spec in super().engines()
        ]
