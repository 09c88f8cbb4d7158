from __future__ import annotations

import hashlib
import multiprocessing
import os
from pathlib import Path

import pytest

from foreserve.errors import ConfigError
from foreserve.models.cache import Cache


def test_digest_is_sha256_and_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights", Cache(tmp_path / "cache")
    file.write_bytes(b"a" * 5_000_000)
    told: list[float] = []
    expected = hashlib.sha256(b"a" * 5_000_000).hexdigest()
    assert cache.digest(file, lambda done, what: told.append(done)) == expected
    assert told[-1] == 1.0
    assert told == sorted(told)
    assert Cache(tmp_path / "cache").digest(file, lambda done, what: told.append(-1.0)) == expected
    assert -1.0 not in told  # not read again
    file.write_bytes(b"b" * 5_000_000)
    os.utime(file, ns=(1, 1))
    assert cache.digest(file) == hashlib.sha256(b"b" * 5_000_000).hexdigest()


def test_a_broken_memory_of_digests_is_no_problem(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights", Cache(tmp_path)
    file.write_bytes(b"x")
    (tmp_path / "digests.json").write_text("{ broken")
    assert cache.digest(file) == hashlib.sha256(b"x").hexdigest()
    assert cache.digest(file) == hashlib.sha256(b"x").hexdigest()


def test_prepared_builds_once_and_finds_it_later(tmp_path: Path) -> None:
    cache, built = Cache(tmp_path / "deep" / "cache"), []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "inside").mkdir()
        (folder / "inside" / "file").write_text("whole")

    assert cache.find("key") is None
    path = cache.prepared("key", build)
    assert cache.prepared("key", build) == path == cache.find("key")
    assert (path / "inside" / "file").read_text() == "whole"
    assert len(built) == 1
    assert not built[0].exists()  # it was built under another name


def test_a_failed_build_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise ConfigError("bad model")

    with pytest.raises(ConfigError, match="bad model"):
        cache.prepared("key", fail)
    assert cache.find("key") is None
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert cache.prepared("key", lambda folder: None).is_dir()


def _crash(root: str) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("")
        os._exit(9)

    Cache(Path(root)).prepared("key", build)


def test_a_builder_that_is_killed_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_crash, args=(str(tmp_path),))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    cache = Cache(tmp_path)
    assert cache.find("key") is None
    path = cache.prepared("key", lambda folder: (folder / "whole").touch())
    assert [file.name for file in path.iterdir()] == ["whole"]
    assert not list(tmp_path.glob(".*.partial"))


def _build(root: str, log: str, start: object) -> None:
    def build(folder: Path) -> None:
        with open(log, "a") as file:
            file.write("built\n")
        (folder / "file").write_text("x" * 100_000)

    start.wait()  # type: ignore[attr-defined]
    path = Cache(Path(root)).prepared("key", build)
    assert (path / "file").stat().st_size == 100_000


def test_concurrent_builders_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, log = context.Barrier(4), tmp_path / "log"
    processes = [
        context.Process(target=_build, args=(str(tmp_path / "cache"), str(log), start), daemon=True) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "built\n"


def test_a_cache_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write the model cache.*FORESERVE_CACHE"):
        Cache(tmp_path / "file" / "cache").prepared("key", lambda folder: None)
