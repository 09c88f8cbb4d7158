import json
import shutil
from pathlib import Path

import pytest

from foreserve.elastic.folder import read_folder, read_tasks
from foreserve.errors import ConfigError
from tests.elastic import folders


def test_a_folder_of_sentence_transformers(sentences: Path) -> None:
    facts = read_folder(sentences)
    assert (facts.pooling, facts.normalised, facts.max_tokens, facts.width) == ("mean", True, 20, 16)
    assert facts.prompts == {"query": "find "}
    assert not facts.images
    assert not facts.cross


@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_other_ways_to_pool(tmp_path: Path, pooling: str) -> None:
    assert read_folder(folders.sentences(tmp_path, pooling)).pooling == pooling


def test_a_plain_hugging_face_folder_is_pooled_by_the_mean(cross: Path, vision: Path, tmp_path: Path) -> None:
    folders.BertModel(folders.bert_config()).save_pretrained(tmp_path)
    facts = read_folder(tmp_path)
    assert (facts.pooling, facts.normalised, facts.max_tokens) == ("mean", False, 40)
    assert read_folder(cross).cross
    seen = read_folder(vision)
    assert (seen.images, seen.pooling, seen.image_size) == (True, "cls", 12)


def test_what_cannot_be_served_is_told(tmp_path: Path, sentences: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_folder(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(sentences, copy)
    (copy / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True})
    )
    with pytest.raises(ConfigError, match="one of cls, mean, max is served"):
        read_folder(copy)
    (copy / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ConfigError, match="'Dense' is not known"):
        read_folder(copy)


def test_tasks_are_found_by_their_folders(tasks: Path, sentences: Path) -> None:
    found = read_tasks(tasks, read_folder(sentences))
    assert [*found] == ["mood", "topic"]
    assert found["mood"].accuracy["prompts:2"] == 0.9


def test_tasks_that_do_not_fit_are_told(tasks: Path, sentences: Path, tmp_path: Path) -> None:
    facts = read_folder(sentences)
    with pytest.raises(ConfigError, match="foreserve adapt"):
        read_tasks(tmp_path, facts)
    with pytest.raises(ConfigError, match="is no folder"):
        read_tasks(tmp_path / "nothing", facts)
    folders.task(tmp_path / "wide", ["a", "b"], {"plain": 0.5})
    file = tmp_path / "wide" / "task.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "width": 17}))
    with pytest.raises(ConfigError, match="17 wide"):
        read_tasks(tmp_path, facts)
    file.write_text(json.dumps({**told, "kept": ["merge:9"]}))
    with pytest.raises(ConfigError, match="`kept`"):
        read_tasks(tmp_path, facts)
    file.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tasks(tmp_path, facts)
