import os
import shutil
from pathlib import Path

import msgspec
import pytest

from foreserve.engines.openvino_prepare import FACTS, MODEL, Facts, prepared
from foreserve.errors import EngineStartError

pytest.importorskip("openvino_genai")
gguf = pytest.importorskip("gguf")


def tiny_gguf(path: Path, file_type: int) -> Path:
    """A GGUF file that names a vocabulary and a context and holds no weights."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.context_length", 64)
    writer.add_token_list(["a", "b", "c"])
    writer.add_uint32("general.file_type", file_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_is_no_model_is_told_in_words(tmp_path):
    with pytest.raises(EngineStartError, match="no model file"):
        prepared(tmp_path / "none.gguf")
    with pytest.raises(EngineStartError, match=f"has no {MODEL}"):
        prepared(tmp_path)
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(EngineStartError, match="is not a GGUF file"):
        prepared(tmp_path / "text.gguf")


def test_weights_that_the_reader_degrades_are_refused(tmp_path):
    with pytest.raises(EngineStartError, match=r"f16 \(1\), q8_0 \(7\)"):
        prepared(tiny_gguf(tmp_path / "q4.gguf", file_type=3))
    assert not (tmp_path / "q4.openvino").exists()


def test_nothing_half_made_is_left_when_the_reader_fails(tmp_path):
    with pytest.raises(EngineStartError, match="OpenVINO cannot read"):
        prepared(tiny_gguf(tmp_path / "f16.gguf", file_type=1), tmp_path / "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f16.gguf", "made.lock"]


def test_a_folder_of_openvinos_own_is_taken_as_it_is(tmp_path):
    (tmp_path / MODEL).write_text("<net/>")
    with pytest.raises(EngineStartError, match="can be read"):
        prepared(tmp_path)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 2048, "vocab_size": 99}')
    folder, facts = prepared(tmp_path)
    assert folder == tmp_path
    assert facts == Facts(context_tokens=2048, vocab_size=99, weights="openvino")


@pytest.mark.model
@pytest.mark.slow
def test_it_is_made_once_and_again_when_the_file_changes(smollm2, tmp_path):
    model = tmp_path / "model.gguf"
    shutil.copyfile(smollm2["model_path"], model)
    folder, facts = prepared(model)
    assert folder == tmp_path / "model.openvino"
    assert (facts.context_tokens, facts.vocab_size, facts.weights) == (8192, 49152, "f16")
    assert facts.kv_block_bytes_exact == 32 * 30 * 2 * 3 * 64 * 4  # tokens, layers, K and V, heads, width, f32
    assert not (folder / "model.gguf").exists()
    made = (folder / MODEL).stat().st_mtime_ns
    assert prepared(model) == (folder, facts)
    assert (folder / MODEL).stat().st_mtime_ns == made
    os.utime(model, (1, 1))
    _, again = prepared(model)
    assert (folder / MODEL).stat().st_mtime_ns != made
    assert msgspec.json.decode((folder / FACTS).read_bytes(), type=Facts) == again != facts
