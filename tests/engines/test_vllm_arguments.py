"""Settings in vLLM's words; vLLM itself is not needed."""

from dataclasses import dataclass
from typing import Literal

import pytest

from foreserve.engines.vllm import VLLMEngine
from foreserve.engines.vllm_arguments import OURS, VLLMSettings, check
from foreserve.errors import EngineStartError

PLAIN = {
    "model_path": "/models/a",
    "max_running": 4,
    "max_waiting": 0,
    "max_batched_tokens": None,
    "kv_cache_gb": None,
    "prefix_caching": True,
    "context_tokens": None,
    "weights": "auto",
    "sleep": False,
    "more": {},
}


def arguments(**changed):
    return VLLMSettings(**PLAIN | changed).arguments()


def test_settings_become_arguments_and_the_queue_is_bounded():
    said = arguments(max_waiting=3, kv_cache_gb=0.5, context_tokens=512, weights="f32", max_batched_tokens=256)
    assert said["max_num_seqs"] == 4
    assert said["max_num_queued_reqs"] == 7
    assert said["kv_cache_memory_bytes"] == 2**29
    assert said["max_model_len"] == 512
    assert said["dtype"] == "float32"
    assert said["max_num_batched_tokens"] == 256
    assert said["scheduling_policy"] == "priority"


def test_without_a_wish_the_context_is_what_the_kv_cache_holds():
    assert arguments()["max_model_len"] == -1
    assert "kv_cache_memory_bytes" not in arguments()
    assert "max_num_batched_tokens" not in arguments()


def test_a_step_has_a_token_for_each_that_runs():
    assert arguments(max_batched_tokens=2, max_running=16)["max_num_batched_tokens"] == 16


@pytest.mark.parametrize("name", ["gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override"])
def test_a_size_of_the_kv_cache_in_vllms_words_goes_before_ours(name):
    said = arguments(kv_cache_gb=1.0, more={name: 1})
    assert said[name] == 1
    assert len({"gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override"} & set(said)) == 1


@pytest.mark.parametrize(("name", "setting"), OURS.items())
def test_what_follows_from_a_setting_is_refused_by_its_name(name, setting):
    with pytest.raises(ValueError, match=f"`{name}` is not for `engine_options`: .*{setting}"):
        VLLMEngine(model_path="/models/a", **{name: 1})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "q8_0"}, "`weights` is 'q8_0'; valid: auto, bf16, f16, f32"),
        ({"max_running": 0}, "`max_running` is 0; it must be at least 1"),
        ({"max_waiting": -1}, "`max_waiting` is -1; it must be at least 0"),
    ],
)
def test_wrong_settings(options, words):
    with pytest.raises(ValueError, match=words):
        VLLMEngine(model_path="/models/a", **options)


@dataclass
class Accepted:
    """As vLLM's `AsyncEngineArgs`: some types are text alone."""

    enforce_eager: bool = False
    tensor_parallel_size: int = 1
    load_format: Literal["auto", "dummy"] = "auto"
    quantization_config: "dict[str, int] | Unknown | None" = None  # noqa: F821
    _private: int = 0


def test_further_arguments_are_checked_by_name_and_type():
    check({"enforce_eager": True, "tensor_parallel_size": 2, "quantization_config": "left to vLLM"}, Accepted)
    for more, words in (
        ({"enforce_eagre": True}, "no argument 'enforce_eagre'; did you mean 'enforce_eager'"),
        ({"_private": 1}, "no argument '_private'"),
        ({"tensor_parallel_size": "two"}, "`tensor_parallel_size` is 'two': Input should be a valid integer"),
        ({"load_format": "gguf"}, "`load_format` is 'gguf': Input should be 'auto' or 'dummy'"),
    ):
        with pytest.raises(EngineStartError, match=words):
            check(more, Accepted)


async def test_what_is_no_folder_is_told_before_vllm_is_looked_for(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(EngineStartError, match=r"model\.gguf is a file; vLLM takes Hugging Face folders and no GGUF"):
        await VLLMEngine(model_path=str(file)).start()
    with pytest.raises(EngineStartError, match=r"no Hugging Face folder: it has no config\.json"):
        await VLLMEngine(model_path=str(tmp_path)).start()


async def test_a_missing_package_is_told_with_what_installs_it(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(__import__("sys").modules, "vllm.engine.arg_utils", None)
    with pytest.raises(EngineStartError, match=r"pip install 'foreserve\[vllm\]'"):
        await VLLMEngine(model_path=str(tmp_path)).start()
