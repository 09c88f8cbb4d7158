import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from foreserve.cli.main import app
from foreserve.elastic import adapting
from foreserve.elastic.adapting import Adapting, Plan
from foreserve.elastic.folder import read_folder, read_tasks
from foreserve.elastic.heads import Task
from foreserve.elastic.labelled import read_labelled
from foreserve.elastic.loading import load
from foreserve.errors import ConfigError

PLAN = Plan(merges=(1, 4), prompts=(2,), epochs=3, batch=8)


def rows(file: Path, count: int, seed: int = 0) -> Path:
    """Texts of two kinds: with more of the letters a to e, or of v to z."""
    draw = np.random.default_rng(seed)
    with file.open("w") as out:
        for at in range(count):
            likely = draw.choice(list("abcde" if at % 2 else "vwxyz"), draw.integers(3, 9))
            other = draw.choice(list("abcdevwxyz"), 3)
            words = draw.permutation([*likely, *other])
            out.write(json.dumps({"text": " ".join(words), "label": ["late", "early"][at % 2]}) + "\n")
    return file


def run(folder: Path, base: Path, out: Path, plan: Plan = PLAN, told: list[str] | None = None) -> Adapting:
    facts = read_folder(folder)
    train, labels = read_labelled(rows(base / "train.jsonl", 80), folder, facts, ())
    held, _ = read_labelled(rows(base / "test.jsonl", 40, seed=1), folder, facts, labels)
    model, _ = load(folder, facts, "f32")
    heard = [] if told is None else told
    return Adapting(model, folder, facts, train, held, labels, plan, out, lambda done, what: heard.append(what))


def test_a_task_is_learned_and_can_be_served(sentences: Path, tmp_path: Path) -> None:
    told: list[str] = []
    facts = run(sentences, tmp_path, tmp_path / "tasks" / "kind", told=told).run()
    assert [*facts.accuracy] == ["merge:4", "merge:1", "plain", "prompts:2"]
    assert facts.accuracy["plain"] > 0.65  # the encoder's own weights are drawn
    assert facts.held_out == 40
    assert read_tasks(tmp_path / "tasks", read_folder(sentences))["kind"] == facts
    task = Task.load(tmp_path / "tasks" / "kind", facts)
    assert task.prompts(2).shape == (2, 2, 16)
    assert task.head(2).weight.shape == (2, 16)
    assert not (tmp_path / "tasks" / "kind" / adapting.STATE).exists()
    assert any("2 prompts, loss" in what for what in told)


def test_the_encoder_stays_as_it_was(sentences: Path, tmp_path: Path) -> None:
    ours = run(sentences, tmp_path, tmp_path / "kind")
    before = {name: value.clone() for name, value in ours._encoder.model.state_dict().items()}
    ours.run()
    assert all(torch.equal(value, before[name]) for name, value in ours._encoder.model.state_dict().items())


def test_prompts_learn(sentences: Path, tmp_path: Path) -> None:
    """With the head held still by hardly any training, what is gained is the prompts'."""
    ours = run(sentences, tmp_path, tmp_path / "kind", Plan(merges=(), prompts=(4,), epochs=6, batch=8, rate=3e-2))
    ours.run()
    start = run(sentences, tmp_path, tmp_path / "other", Plan(merges=(), prompts=(4,), epochs=1, rate=1e-9, batch=8))
    start.run()
    one, other = (load_file(tmp_path / name / "task.safetensors")["prompts.4"] for name in ("kind", "other"))
    assert (one - other).abs().mean() > 0.01
    fit = [each._evaluate(each._rest, adapting.Prompts(4), each._tensors, "") for each in (ours, start)]
    assert fit[0] >= fit[1]


@pytest.mark.parametrize("stop_at", ["encoding, aside", "2 prompts, epoch 2", "evaluating plain"])
def test_a_run_that_was_ended_goes_on_to_the_same_task(sentences: Path, tmp_path: Path, stop_at: str) -> None:
    whole = run(sentences, tmp_path, tmp_path / "whole").run()

    class Ended(Exception):
        pass

    ours = run(sentences, tmp_path, tmp_path / "parts")

    def end(done: float, what: str) -> None:
        if stop_at in what:
            raise Ended

    ours._progress = end
    with pytest.raises(Ended):
        ours.run()
    found = run(sentences, tmp_path, tmp_path / "parts").run()
    assert found.accuracy == whole.accuracy
    one, other = (load_file(tmp_path / name / "task.safetensors") for name in ("whole", "parts"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name])


def test_a_run_does_not_go_on_with_other_words(sentences: Path, tmp_path: Path) -> None:
    ours = run(sentences, tmp_path, tmp_path / "kind")
    (tmp_path / "kind").mkdir()
    ours._keep()
    with pytest.raises(ConfigError, match="remove it to begin anew"):
        run(sentences, tmp_path, tmp_path / "kind", Plan(seed=5))


def test_images_by_class_folders(vision: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for at in range(12):
            pixels = (level + draw.integers(-30, 30, (12, 12, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{at}.png")
    words = ["adapt", str(vision), str(tmp_path / "data"), "--out", str(tmp_path / "tasks" / "light")]
    found = CliRunner().invoke(app, [*words, "--epochs", "1", "--merge", "2", "--prompts", "1", "--threads", "1"])
    assert found.exit_code == 0, found.output
    facts = read_tasks(tmp_path / "tasks", read_folder(vision))["light"]
    assert facts.labels == ["dark", "light"]
    assert facts.accuracy["plain"] > 0.7


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("", "at least two"),
        ('{"text": "a", "label": "x"}\n{"text": "b"}', "line 2"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}', "at least two"),
        ("nothing", "line 1"),
    ],
)
def test_data_that_is_wrong_is_told(sentences: Path, tmp_path: Path, lines: str, told: str) -> None:
    (tmp_path / "data.jsonl").write_text(lines)
    with pytest.raises(ConfigError, match=told):
        read_labelled(tmp_path / "data.jsonl", sentences, read_folder(sentences), ())


@pytest.mark.parametrize("words", [["--merge", "0"], ["--prompts", "x"], ["--epochs", "0"], ["--rate", "0"]])
def test_words_that_are_wrong_are_told(sentences: Path, tmp_path: Path, words: list[Any]) -> None:
    data = rows(tmp_path / "data.jsonl", 8)
    found = CliRunner().invoke(app, ["adapt", str(sentences), str(data), "--out", str(tmp_path / "t"), *words])
    assert found.exit_code != 0
    assert not (tmp_path / "t").exists()
