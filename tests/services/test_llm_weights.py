import json
from pathlib import Path

import pytest

from foreserve.runtime.safetensors import arranged
from foreserve.services.llm_weights import INDEX, shared_weights


def put(path: Path, dtype: str = "BF16", name: str = "a") -> Path:
    head, places = arranged({name: (dtype, (2, 2))}, "made")
    path.write_bytes(head + bytes(places[name].end - places[name].begin))
    return path


def names(folder: Path, **options: object) -> list[str]:
    refs = shared_weights("transformers", {"model_path": str(folder), "weights": "bf16", **options})
    assert all(ref.name == ref.source and ref.kind == "file" for ref in refs)
    return [Path(ref.name).name for ref in refs]


def index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_checkpoint_in_the_precision_that_is_wanted(tmp_path):
    put(tmp_path / "model.safetensors")
    put(tmp_path / "consolidated.safetensors")
    assert names(tmp_path) == ["model.safetensors"]
    assert names(tmp_path, weights="f32") == []
    assert shared_weights("openvino", {"model_path": str(tmp_path)}) == ()
    assert names(tmp_path, shared_weights=[]) == []


def test_a_checkpoint_in_several_files(tmp_path):
    for one in ("model-1.safetensors", "model-2.safetensors"):
        put(tmp_path / one)
    index(tmp_path, {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"})
    assert names(tmp_path) == ["model-1.safetensors", "model-2.safetensors"]
    put(tmp_path / "model-2.safetensors", "F32")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: (folder / "model.safetensors").write_bytes(b"no header at all"),
        lambda folder: put(folder / "model.safetensors", "U8"),
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
    ],
)
def test_what_has_to_be_loaded_by_the_library(tmp_path, spoil):
    put(tmp_path / "model.safetensors")
    assert names(tmp_path) == ["model.safetensors"]
    spoil(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("weight_map", [["a"], {"a": 1}, {"a": "gone.safetensors"}])
def test_an_index_that_is_broken(tmp_path, weight_map):
    index(tmp_path, weight_map)
    assert names(tmp_path) == []
