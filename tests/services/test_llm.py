from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foreserve.core import Chunk, EngineInfo, Request, Work
from foreserve.engines.generation import Generate, Tokens
from foreserve.errors import BadRequest, ConfigError, ContextExceeded, Unavailable
from foreserve.services.foreseen import UNKNOWN_TOKENS
from foreserve.services.llm import LLM
from foreserve.services.llm_prompt import Sampling
from foreserve.settings import LLMSettings

INFO = EngineInfo(batching="continuous", capacity={"slots": 4, "kv_tokens": 4096}, facts={"context_tokens": 2048})


def ready() -> LLM:
    llm = LLM("simulated")
    llm.prepare()
    llm.ready(INFO)
    return llm


def asked(payload: Generate) -> Request:
    return Request(id="a", service="chat", payload=payload, arrival=0.0)


def test_words_and_their_mistakes():
    assert LLM("simulated", replicas=2).settings.replicas == 2
    assert LLM(model="simulated").settings.model == "simulated"
    for wrong, words in (
        (lambda: LLM("simulated", max_runing=3), "max_running"),
        (lambda: LLM("simulated", model="simulated"), "twice"),
        (lambda: LLM(), "model"),
        (lambda: LLM("simulated", engine="simulatd"), "did you mean 'simulated'"),
        (lambda: LLM("simulated", engine="openvino"), "go together"),
        (lambda: LLM("smollm2", engine="simulated"), "go together"),
    ):
        with pytest.raises(ConfigError, match=words):
            wrong()
    settings = LLMSettings(model="simulated")
    assert LLM.from_settings(settings, "app.yaml: services.chat").settings is settings


def test_the_engine_of_the_simulated_model():
    specs = LLM("simulated", replicas=2, max_running=3, context_tokens=100, engine_options={"decode_s": 0.5}).engines()
    assert len(specs) == 2
    assert specs[0].factory == "foreserve.engines.simulated:SimulatedEngine"
    assert specs[0].options == {"slots": 3, "context_tokens": 100, "decode_s": 0.5}


def test_the_policy_suits_the_engine():
    assert LLM("simulated").policy == "hrrn"
    assert LLM("simulated", engine_options={"batching": "static"}).policy == "magnus"
    assert LLM("some/folder", engine="transformers").policy == "magnus"


def test_the_placement_suits_the_engine():
    assert LLM("simulated").placement == "anticipated"
    assert LLM("simulated", engine_options={"batching": "static"}).placement == "least_requests"


@pytest.mark.parametrize(
    ("words", "blocks"),
    [
        ({"replicas": 2}, 3),
        ({}, 0),
        ({"replicas": (0, 2), "placement": "least_requests"}, 0),
        ({"replicas": [1, 2]}, 3),
    ],
)
def test_how_a_prompt_begins_is_told_where_a_replica_is_chosen_by_it(words: dict[str, Any], blocks: int):
    llm = LLM("simulated", **words)
    prefix = llm.price(asked(Generate(prompt=[1] * 200, max_tokens=9))).prefix
    assert (0 if prefix is None else len(prefix.blocks)) == blocks


@pytest.mark.parametrize("features", [(), ("resume",)])
def test_a_seeded_answer_is_resumed_where_the_engine_can(features: tuple[str, ...]):
    llm = ready()
    llm.ready(msgspec.structs.replace(INFO, features=features))
    payload = Generate(prompt=[1], max_tokens=9, seed=1)
    work = Work(id="a", payload=payload, cost={}, arrival=0.0)
    decoder = llm.decoder(work)
    decoder.feed(Chunk(id="a", index=0, data=Tokens(ids=[97])))
    assert (decoder.resume() is not None) is bool(features)


def test_a_model_that_is_not_there_is_found_out_early():
    with pytest.raises(ConfigError, match="nowhere"):
        LLM("nowhere/at/all", engine="transformers").check()
    LLM("simulated").check()


async def test_nothing_can_be_asked_before_a_replica_was_ready():
    llm = LLM("simulated")
    with pytest.raises(Unavailable):
        await llm.complete(["a"], Sampling())
    llm.prepare()
    with pytest.raises(Unavailable):
        await llm.complete(["a"], Sampling())


async def test_a_conversation_becomes_a_priced_payload():
    llm = ready()
    payload = await llm.chat([{"role": "user", "content": "hi"}], Sampling(max_tokens=10))
    assert bytes(payload.prompt) == b"user: hi\nassistant: "
    assert llm.price(asked(payload)).cost == {"slots": 1.0, "kv_tokens": len(payload.prompt) + 10.0}
    assert llm.events_bound(payload) >= 10
    llm.decoder(Work(id="a", payload=payload, cost={}, arrival=0.0))


def test_no_more_room_is_kept_than_answers_usually_take():
    price = ready().price(asked(Generate(prompt=[1, 2, 3], max_tokens=5000))).cost
    assert price == {"slots": 1.0, "kv_tokens": 3.0 + UNKNOWN_TOKENS}


async def test_long_texts_are_read_off_the_loop_and_checked_alike():
    llm = ready()
    long = "x" * 20_000
    for asking in (llm.chat([{"role": "user", "content": long}], Sampling()), llm.complete([long], Sampling())):
        with pytest.raises(ContextExceeded, match="context is 2048"):
            await asking
    assert isinstance((await llm.complete([[1, 2]], Sampling()))[0], Generate)


async def test_what_a_template_raises_is_about_the_messages(monkeypatch: pytest.MonkeyPatch):
    llm = ready()

    def refuse(messages: object, wall: float) -> list[int]:
        raise ValueError("roles must alternate")

    monkeypatch.setattr(llm.text, "conversation", refuse)
    with pytest.raises(BadRequest, match="roles must alternate") as caught:
        await llm.chat([{"role": "user", "content": "hi"}], Sampling())
    assert caught.value.param == "messages"


async def test_many_short_prompts_are_tokenised_off_the_loop_as_one_long_one_is(monkeypatch: pytest.MonkeyPatch):
    llm = ready()
    threads: set[int] = set()
    plain = llm.text.encode

    def encode(text: str) -> list[int]:
        threads.add(threading.get_ident())
        return plain(text)

    monkeypatch.setattr(llm.text, "encode", encode)
    here = threading.get_ident()
    payloads = await llm.complete(["a" * 100, [7, 8]], Sampling(max_tokens=1))
    assert (threads, [len(payload.prompt) for payload in payloads]) == ({here}, [100, 2])
    threads.clear()
    payloads = await llm.complete(["a" * 1000] * 5, Sampling(max_tokens=1))
    assert here not in threads
    assert [len(payload.prompt) for payload in payloads] == [1000] * 5


def test_a_hugging_face_folder_is_for_transformers_by_itself(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    assert LLM(str(tmp_path)).engine_name == "transformers"
    with pytest.raises(ConfigError, match=r"engine 'openvino' cannot run .*valid: transformers"):
        LLM(str(tmp_path), engine="openvino").check()


def test_vllm_takes_the_gpus_that_it_sees(tmp_path: Path):
    assert LLM(str(tmp_path), engine="vllm").policy == "hrrn"
    with pytest.raises(ConfigError, match=r"`device` is not for vLLM.*CUDA_VISIBLE_DEVICES"):
        LLM(str(tmp_path), engine="vllm", device="cuda:0")


def test_missing_packages_are_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("foreserve.services.llm_engine.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'foreserve\[openvino\]'"):
        LLM(str(tmp_path / "m.gguf")).prepare()
