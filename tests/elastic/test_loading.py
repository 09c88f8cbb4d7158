"""Encoders from their folders: weights that nothing is made of may be missing, others not."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from foreserve.elastic.folder import read_folder
from foreserve.elastic.loading import load
from foreserve.errors import EngineStartError
from foreserve.models.catalog import locate

from . import folders


def without(folder: Path, part: str) -> None:
    """Its weights but for those of this name."""
    file = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if part not in name}
    assert len(kept) < len(load_file(file))
    save_file(kept, file, metadata={"format": "pt"})


def test_a_model_without_pooler_loads_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folders.sentences(tmp_path)
    facts = read_folder(folder)
    whole, _ = load(folder, facts, "f32")
    without(folder, "pooler.")
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        model, _ = load(folder, facts, "f32")
        load(where := locate("vit-cifar10", "test").path, read_folder(where), "f32")
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records
    ids = torch.tensor([[2, 5, 6, 3]])
    assert torch.equal(model(ids).last_hidden_state, whole(ids).last_hidden_state)


@pytest.mark.parametrize(("made", "part"), [(folders.sentences, "layer.1.output"), (folders.cross, "pooler.")])
def test_a_file_that_lacks_weights_of_its_answers_is_refused(made: object, part: str, tmp_path: Path) -> None:
    folder = made(tmp_path)  # type: ignore[operator]
    without(folder, part)
    with pytest.raises(EngineStartError, match=f"lacks weights of its model: .*{part}"):
        load(folder, read_folder(folder), "f32")
    assert not logging.getLogger("transformers.modeling_utils").filters
