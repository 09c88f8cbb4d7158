"""The engine of encoders: one batch at a time, each under the token setting that its plan names."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from foreserve import clock
from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Work
from foreserve.elastic.folder import EncoderFacts
from foreserve.elastic.payload import Encode, TaskFacts, Vector
from foreserve.elastic.profile import Profile
from foreserve.elastic.setting import Prompts, Setting, parse_setting
from foreserve.engines.answer import Numbered
from foreserve.errors import EngineStartError

if TYPE_CHECKING:
    from torch import Tensor

    from foreserve.elastic.encoder import ElasticEncoder
    from foreserve.elastic.heads import Task
    from foreserve.elastic.inputs import Images

log = logging.getLogger(__name__)

T = TypeVar("T")

IMPORTED_LATER = (
    "foreserve.elastic.heads",
    "foreserve.elastic.inputs",
    "foreserve.elastic.loading",
    "foreserve.engines.transformers_shared",
    "transformers.models.auto.modeling_auto",
)
"""What takes most of a start, for a process that does it before it is wanted."""


class ElasticEngine:
    """Encodes texts or images. Payload `Encode`, chunk data `Vector`; a plan is a setting as it is spelled.

    `facts` are those of the model's `folder`, `tasks` the folders of tasks by name with theirs. At most `size` inputs
    run together. Without a `profile` each of `settings` is measured when it starts, within about `measure_s` seconds,
    and told as the fact `profile`; `samples` are texts (ids) of which it tells how near their merged embeddings are to
    the plain ones, as the fact `fidelity`.

    An input that cannot be read is rejected alone. Running out of memory ends all with `error`, to be tried again.
    """

    def __init__(
        self,
        *,
        folder: str,
        facts: Mapping[str, Any],
        settings: Sequence[str] = ("plain",),
        tasks: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
        size: int = 32,
        threads: int | None = None,
        weights: str = "f32",
        shared_weights: Sequence[str] = (),
        samples: Sequence[Sequence[int]] = (),
        profile: Mapping[str, Any] | None = None,
        measure_s: float = 10.0,
    ) -> None:
        self._folder = Path(folder)
        self._facts = msgspec.convert(facts, EncoderFacts)
        self._settings = {each: parse_setting(each) for each in settings}
        self._task_folders = {
            name: (Path(path), msgspec.convert(told, TaskFacts)) for name, (path, told) in (tasks or {}).items()
        }
        self._size = size
        self._threads = threads
        self._weights = weights
        self._shared_weights = shared_weights
        self._samples = [Encode(ids=[*ids]) for ids in samples]
        self._profile = None if profile is None else msgspec.convert(profile, Profile)
        self._measure_s = measure_s
        self._tasks: dict[str, Task] = {}
        self._encoder: ElasticEncoder | None = None
        self._model: Any = None
        self._images: Images | None = None
        self._running: set[str] = set()
        self._cancelled: set[str] = set()
        # One thread: a batch begins when the one before has ended.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encode")

    async def start(self) -> EngineInfo:
        """Load the model and the tasks, and measure them. Raises EngineStartError in words."""
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # it has to be said before torch is loaded
        is_shared = await self._off(self._load)
        profile = self._profile or await self._measured()
        facts: dict[str, Any] = {"weights": self._weights, "weights_shared": is_shared}
        facts["profile"] = msgspec.to_builtins(profile)
        facts["fidelity"] = await self._off(self._fidelity)
        return EngineInfo(batching="static", capacity={"slots": float(self._size)}, facts=facts)

    async def _off(self, work: Callable[[], T]) -> T:
        """Off the loop, in the thread that everything of torch runs in."""
        return await asyncio.wrap_future(self._pool.submit(work))

    def _load(self) -> bool:
        """The model and what goes with it. Whether its weights are shared."""
        try:
            import torch

            from foreserve.elastic.encoder import ElasticEncoder
            from foreserve.elastic.heads import Task
            from foreserve.elastic.inputs import Images
            from foreserve.elastic.loading import load
        except ImportError as error:
            raise EngineStartError(f"{error}; install it with: pip install 'foreserve[torch]'") from error
        if self._threads:
            torch.set_num_threads(self._threads)
        self._model, is_shared = load(self._folder, self._facts, self._weights, self._shared_weights)
        self._encoder = ElasticEncoder(self._model)
        self._images = Images(self._folder, self._facts) if self._facts.images else None
        self._tasks = {name: Task.load(*found) for name, found in self._task_folders.items()}
        if not self._encoder.elastic and len(self._settings) > 1:
            others = ", ".join(each for each in self._settings if each != "plain")
            raise EngineStartError(f"models of type {self._facts.model_type!r} serve as plain alone, not: {others}")
        return is_shared

    async def _measured(self) -> Profile:
        from foreserve.elastic.measuring import measured, steps
        from foreserve.elastic.weighing import peak_bytes

        lengths = (1,) if self._facts.images else steps(self._facts.max_tokens, 16, 4)

        def run(setting: str, size: int, length: int) -> Callable[[], object]:
            inputs = self._blank(size, length)
            nobody: list[Task | None] = [None] * size
            return lambda: self._vectors(inputs, nobody, self._settings[setting], rehearsal=True)

        async def forward(setting: str, size: int, length: int) -> object:
            return await self._off(run(setting, size, length))

        async def weigh(setting: str, size: int, length: int) -> int:
            work = run(setting, size, length)
            return await self._off(lambda: peak_bytes(work))

        return await measured(forward, [*self._settings], steps(self._size, 1, 8), lengths, self._measure_s, weigh)

    def _blank(self, size: int, length: int) -> dict[str, Tensor]:
        """Inputs that mean nothing."""
        import torch

        if self._facts.images:
            return {"pixel_values": torch.rand(size, 3, self._facts.image_size, self._facts.image_size)}
        ids = torch.randint(0, self._model.config.vocab_size, (size, length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _fidelity(self) -> dict[str, float]:
        from foreserve.elastic.heads import pooled
        from foreserve.elastic.inputs import padded
        from foreserve.elastic.measuring import fidelity

        wanted = {name: each for name, each in self._settings.items() if not isinstance(each, Prompts)}
        if not self._samples or self._facts.cross or len(wanted) < 2:
            return {"plain": 1.0}
        import torch

        assert self._encoder is not None
        with torch.inference_mode():
            inputs = padded(self._samples, self._facts)
            vectors = {name: pooled(self._encoder(inputs, each), self._facts.pooling) for name, each in wanted.items()}
        return fidelity(vectors)

    # --- a batch

    def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """A static engine has none."""
        raise NotImplementedError("batches alone are run: see `run_batch`")

    async def run_batch(self, works: Sequence[Work], plan: Any = None) -> AsyncIterator[Sequence[Chunk]]:
        """See `Engine`. All chunks come together."""
        self._running = {work.id for work in works}
        try:
            began = clock.precise()
            chunks = await self._off(lambda: self._encoded(works, plan or "plain"))
            seconds = {"seconds": clock.precise() - began, "batch": float(len(works))}
            yield [_timed(chunk, seconds) for chunk in chunks]
        finally:
            self._running = set()
            self._cancelled.clear()

    def _encoded(self, works: Sequence[Work], plan: str) -> list[Chunk]:
        import torch

        from foreserve.elastic.inputs import BadInput, padded

        setting = parse_setting(plan)
        chunks: list[Chunk] = []
        rows: list[tuple[Numbered, Encode]] = []
        pixels: list[Tensor] = []
        for work in works:
            payload = work.payload if isinstance(work.payload, Encode) else msgspec.convert(work.payload, Encode)
            try:
                if self._images is not None:
                    pixels.append(self._images.pixels(payload))
                rows.append((Numbered(work), payload))
            except BadInput as error:
                chunks.append(Numbered(work).chunk(finish=Finish(reason="rejected", error=str(error))))
        if not rows:
            return chunks
        payloads = [payload for _, payload in rows]
        tasks = [self._tasks[payload.task] if payload.task else None for payload in payloads]
        try:
            inputs = padded(payloads, self._facts) if not pixels else {"pixel_values": torch.stack(pixels)}
            found = self._vectors(inputs, tasks, setting)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            finish = Finish(reason="error", error=f"out of memory: {error}", detail={"retry": "memory"})
            return chunks + [numbered.chunk(finish=finish) for numbered, _ in rows]
        for (numbered, payload), row in zip(rows, found, strict=True):
            if numbered.work.id in self._cancelled:
                chunks.append(numbered.chunk(finish=Finish(reason="cancelled")))
                continue
            usage = {"prompt_tokens": float(len(payload.ids))}
            data = Vector(data=row.float().numpy().astype("<f4").tobytes(), setting=plan)
            chunks.append(numbered.chunk(data, finish=Finish(reason="stop", usage=usage)))
        return chunks

    def _vectors(
        self, inputs: Mapping[str, Tensor], tasks: Sequence[Task | None], setting: Setting, rehearsal: bool = False
    ) -> list[Tensor]:
        """Each row's answer. A `rehearsal` takes prompts that mean nothing."""
        import torch

        from foreserve.elastic.heads import answered, gathered, pooled

        assert self._encoder is not None
        with torch.inference_mode():
            if self._facts.cross:
                logits = self._model(**inputs).logits
                return [*(logits.sigmoid() if logits.shape[1] == 1 else logits)]
            p = setting.p if isinstance(setting, Prompts) else 0
            prompts = None
            if p and rehearsal:
                prompts = torch.zeros(len(tasks), self._encoder.depth, p, self._encoder.width)
            elif p:
                prompts = gathered([task for task in tasks if task is not None], p)
            encoded = self._encoder(inputs, setting, prompts)
            hows = [self._facts.pooling if task is None else task.facts.pooling for task in tasks]
            by_how = {how: pooled(encoded, how) for how in dict.fromkeys(hows)}
            vectors = torch.stack([by_how[how][row] for row, how in enumerate(hows)])
            if self._facts.normalised:
                free = torch.tensor([task is None for task in tasks])[:, None]
                vectors = torch.where(free, torch.nn.functional.normalize(vectors, dim=1), vectors)
            return answered(vectors, tasks, p)

    # --- the rest of an engine

    async def cancel(self, request_id: str) -> None:
        """See `Engine`. The batch runs on for the others."""
        if request_id in self._running:
            self._cancelled.add(request_id)

    async def load(self) -> EngineLoad:
        """See `Engine`."""
        return EngineLoad(running=len(self._running), waiting=0)

    async def close(self) -> None:
        """See `Engine`."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _timed(chunk: Chunk, seconds: dict[str, float]) -> Chunk:
    """With what its batch took, where it was answered."""
    if chunk.finish is None or chunk.finish.reason != "stop":
        return chunk
    finish = msgspec.structs.replace(chunk.finish, usage={**chunk.finish.usage, **seconds})
    return msgspec.structs.replace(chunk, finish=finish)
