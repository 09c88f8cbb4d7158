from __future__ import annotations

from foreserve.engines.remote_metrics import Page, read
from tests.engines.scripted_server import VLLM_METRICS

VLLM = """\
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_cpu_blocks="7",num_gpu_blocks="2306"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="None"} 1.0
vllm:cache_config_info{block_size="16",engine="2",kv_cache_size_tokens="1000",num_gpu_blocks="99"} 1.0
vllm:iteration_tokens_total_bucket{le="1.0"} 3.0
vllm:iteration_tokens_total_count{engine="0"} 40.0
vllm:generation_tokens_total{engine="0"} 1.5e+03
vllm:prefix_cache_queries_total{engine="0"} 900.0
vllm:prefix_cache_hits_total{engine="0"} 300.0
vllm:inter_token_latency_seconds_sum{engine="0"} 12.0
vllm:inter_token_latency_seconds_count{engine="0"} 400.0
"""


def page(text: str) -> Page:
    found = read(text.encode())
    assert found is not None
    return found


def test_load_of_each_make() -> None:
    load = page(VLLM_METRICS).load
    assert (load.running, load.waiting, load.kv_fraction) == (2, 5, 0.25)
    two = page('vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 3\n').load
    assert (two.running, two.waiting, two.kv_fraction) == (5, None, None)
    llama = page("# TYPE x gauge\nllamacpp:requests_processing 1\nllamacpp:requests_deferred 4\n").load
    assert (llama.running, llama.waiting) == (1, 4)
    sglang = page('sglang:num_running_reqs{a="b"} 1.0\nsglang:num_queue_reqs{a="b"} 2.0\nsglang:token_usage 0.5\n').load
    assert (sglang.running, sglang.waiting, sglang.kv_fraction) == (1, 2, 0.5)


def test_other_pages_tell_nothing() -> None:
    assert read(b"python_gc_objects_collected_total 3\n") is None
    assert read(b"") is None
    assert page("vllm:num_requests_running nan\nvllm:num_requests_waiting 1\n").load.running is None


def test_the_size_of_the_cache_progress_pace_and_hits() -> None:
    found = page(VLLM)
    assert found.kv_tokens == 2306 * 16 + 1000
    assert found.progress == 1540.0
    assert found.pace == (12.0, 400.0)
    assert found.load.cached_tokens == 300
    assert page('sglang:max_total_num_tokens{x="y"} 471258.0\n').kv_tokens == 471258.0
    llama = page("llamacpp:n_decode_total 7\nllamacpp:tokens_predicted_seconds_total 2.5\n"
                 "llamacpp:tokens_predicted_total 100\nllamacpp:prompt_tokens_cached_total 12\n")  # fmt: skip
    assert (llama.progress, llama.pace, llama.kv_tokens, llama.load.cached_tokens) == (107.0, (2.5, 100.0), None, 12)
