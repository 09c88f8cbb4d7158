"""What the README shows is run: its commands are started, its curl lines sent, its app files loaded."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from foreserve.appfile import load_app_file
from tests.cli.live import serve

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.M | re.S)
SERVED = """
import foreserve as fs
app = fs.App(chat=fs.LLM("simulated", default_max_tokens=8))
"""


def commands() -> list[str]:
    """Every shell command, with continued lines joined and `&&` taken apart."""
    text = "\n".join(body for language, body in BLOCKS if language == "sh").replace("\\\n", " ")
    lines = [re.sub(r"\s+#.*$", "", line).strip() for line in text.splitlines()]
    return [part.strip() for line in lines if line for part in line.split("&&")]


def test_every_block_is_of_a_kind_that_is_tested_here():
    assert {language for language, _ in BLOCKS} == {"sh", "python", "yaml"}
    assert {shlex.split(line)[0] for line in commands()} == {"pip", "foreserve", "curl", "make"}


def test_what_pip_is_asked_for_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = (ROOT / "models.txt").read_text()
    for line in commands():
        if line.startswith("pip"):
            wanted = [word for word in shlex.split(line)[2:] if not word.startswith("-")]
            for name in wanted:
                extra = re.fullmatch(r"foreserve(?:\[(\w+)\])?", name)
                if extra is None:
                    assert name in pinned
                elif extra[1]:
                    assert extra[1] in project["optional-dependencies"]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for line in commands():
        if line.startswith("make"):
            assert re.search(rf"^{shlex.split(line)[1]}:", makefile, re.M), line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "my-model.gguf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("language", "body"), [block for block in BLOCKS if block[0] != "sh"])
def test_app_files_load(folder: Path, language: str, body: str):
    file = folder / {"python": "app.py", "yaml": "app.yaml"}[language]
    file.write_text(body)
    app = load_app_file(str(file))
    assert "chat" in app.services


def test_the_own_model_takes_five_lines():
    body = next(body for language, body in BLOCKS if language == "python")
    assert len([line for line in body.splitlines() if line.strip()]) <= 5


def test_upstream_mode_as_shown_and_the_curl_line(tmp_path: Path):
    (tmp_path / "app.py").write_text(SERVED)
    line = next(line for line in commands() if "--upstream" in line)
    assert shlex.split(line)[:2] == ["foreserve", "serve"]
    with serve(tmp_path, str(tmp_path / "app.py")) as first, serve(tmp_path, str(tmp_path / "app.py")) as second:
        words = shlex.split(line)[2:]
        urls = [i for i, word in enumerate(words) if word.startswith("http")]
        for index, server in zip(urls, (first, second), strict=True):
            words[index] = server.url
        with serve(tmp_path, *words) as front:
            curl = next(line for line in commands() if line.startswith("curl"))
            curl = curl.replace("http://127.0.0.1:8000", front.url)
            done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=30, check=True)
            assert '"chat.completion"' in done.stdout


@pytest.mark.slow
@pytest.mark.model
def test_the_example_app_and_the_curl_line(tmp_path: Path):
    line = next(line for line in commands() if line.startswith("foreserve serve examples/"))
    with serve(tmp_path, str(ROOT / shlex.split(line)[2])) as live:
        curl = next(line for line in commands() if line.startswith("curl")).replace("http://127.0.0.1:8000", live.url)
        done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=120, check=True)
        assert '"chat.completion"' in done.stdout
