from pathlib import Path

import pytest

from tests.elastic import folders


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.sentences(tmp_path_factory.mktemp("sentences"), prompts={"query": "find "})


@pytest.fixture(scope="session")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.cross(tmp_path_factory.mktemp("cross"))


@pytest.fixture(scope="session")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.vision(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two that any encoder 16 wide and two layers deep can serve."""
    base = tmp_path_factory.mktemp("tasks")
    folders.task(base / "mood", ["bad", "good"], {"merge:2": 0.7, "plain": 0.8, "prompts:2": 0.9}, (2,), seed=1)
    folders.task(base / "topic", ["a", "b", "c"], {"merge:2": 0.6, "plain": 0.65, "prompts:2": 0.7}, (2,), seed=2)
    return base
