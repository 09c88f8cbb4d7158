from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from foreserve.core import EngineInfo
from foreserve.errors import BadRequest
from foreserve.models import tokenizer
from foreserve.models.chat_template import ChatTemplate
from foreserve.models.facts import ModelFacts
from foreserve.models.prepare import PreparedModel
from foreserve.services.llm import LLM
from foreserve.services.llm_prepared import PreparedText, _options
from foreserve.services.llm_prompt import Sampling
from foreserve.settings import LLMSettings


@pytest.fixture(scope="module")
def smollm2() -> LLM:
    llm = LLM("smollm2", engine="openvino", max_running=3, context_tokens=4096)
    llm.prepare()
    return llm


@pytest.mark.model
def test_the_engine_gets_its_words(smollm2: LLM):
    options = smollm2.engines()[0].options
    assert options["model_path"].endswith(".gguf")
    assert (options["max_running"], options["context_tokens"], options["exact"]) == (3, 4096, False)


@pytest.mark.model
async def test_a_conversation_is_the_models_own_prompt(smollm2: LLM):
    smollm2.ready(EngineInfo(batching="continuous", capacity={"slots": 3, "kv_tokens": 9000}))
    payload = await smollm2.chat([{"role": "user", "content": "Hi"}], Sampling())
    text = smollm2.text.decode(payload.prompt)
    assert text.rstrip().endswith("assistant")
    assert "Hi" in text
    # Control tokens are one token each, not their letters.
    assert len(payload.prompt) < 45
    assert payload.max_tokens == 4096 - len(payload.prompt)
    assert payload.stop_tokens


@pytest.mark.model
async def test_pieces_of_text_make_the_whole(smollm2: LLM):
    text = "Grüße, 世界! 👋 and\n  spaces"
    ids = smollm2.text.encode(text)
    detokenizer = smollm2.text.detokenizer()
    assert "".join(detokenizer.feed([i]) for i in ids) + detokenizer.flush() == text == smollm2.text.decode(ids)


@pytest.mark.model
def test_long_texts_have_the_same_ids(smollm2: LLM, monkeypatch: pytest.MonkeyPatch):
    text = "Grüße, 世界! <|im_end|> and\n  spaces. " * 300
    assert len(text) > tokenizer.LONG_CHARS
    long = smollm2.text.encode(text)
    monkeypatch.setattr(tokenizer, "LONG_CHARS", len(text))
    assert smollm2.text.encode(text) == long


class Letters:
    """A tokenizer that shows what it is given."""

    def encode(self, text: str, bos: bool = False) -> list[int]:
        return [ord(letter) for letter in text]


FACTS = ModelFacts(
    name="m", architecture="llama", context_tokens=10, vocab_size=10, layers=1, kv_bytes_per_token=1, weights_bytes=1
)


def test_a_static_engine_is_told_what_its_batches_may_hold(tmp_path: Path):
    model = PreparedModel(weights_path=tmp_path, weights="f32", folder=tmp_path, facts=FACTS)
    settings = LLMSettings(model="m", engine="transformers", kv_cache_gb=40 * 2 / 2**30)  # two bytes a token at f32
    options = _options(settings, "transformers", model)
    assert (options["kv_tokens"], options["weights"]) == (40, "f32")
    assert "kv_tokens" not in _options(settings, "openvino", model)


def test_vllm_knows_every_setting_that_it_is_given(tmp_path: Path):
    """What it did not know it would take for one of vLLM's own arguments."""
    from foreserve.engines.vllm import VLLMEngine

    model = PreparedModel(weights_path=tmp_path, weights="auto", folder=tmp_path, facts=FACTS)
    settings = LLMSettings(model="m", engine="vllm", kv_cache_gb=2, context_tokens=7, max_running=3, threads=1)
    options = _options(settings, "vllm", model)
    engine = VLLMEngine(**options, enforce_eager=True)
    assert dict(engine._settings.more) == {"enforce_eager": True}
    said = engine._settings.arguments()
    assert said["model"] == str(tmp_path)
    assert (said["kv_cache_memory_bytes"], said["max_model_len"], said["max_num_seqs"]) == (2**31, 7, 3)


async def test_a_template_that_writes_the_date_knows_it_in_a_thread_too():
    from foreserve.services.llm_prepared import _wall

    template = ChatTemplate("{{ strftime_now('%Y') }}", wall=_wall.get)
    text = PreparedText(Letters(), template, FACTS)  # type: ignore[arg-type]
    ids = await asyncio.to_thread(text.conversation, [{"role": "user", "content": "x"}], 86_400.0 * 366)
    assert "".join(map(chr, ids)) == "1971"


def test_a_model_without_a_template_says_where_to_go():
    text = PreparedText(Letters(), None, FACTS)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="/v1/completions"):
        text.conversation([{"role": "user", "content": "x"}], 0.0)
