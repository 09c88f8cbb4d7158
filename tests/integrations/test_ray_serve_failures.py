"""Contract tests: how Ray Serve, the pinned minor of it, cancels and fails; what our code beside it relies on."""

import gc
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.ray_cluster import MARKS, ray, small_cluster

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'foreserve[ray]'")

ITEMS = 100
PACE_S = 0.03


@serve.deployment(ray_actor_options={"num_cpus": 0}, num_replicas=2)
class Counts:
    """Yields its process and a number; notes in a file what it has said, and its end."""

    async def __call__(self, path, start=0):
        import asyncio

        try:
            for number in range(start, ITEMS):
                await asyncio.sleep(PACE_S)
                _note(path, f"{number}\n")
                yield os.getpid(), number
        finally:
            _note(path, "end\n")


def _note(path, line):
    with Path(path).open("a") as file:
        file.write(line)


@pytest.fixture(scope="module")
def handle():
    with small_cluster():
        serve.start(proxy_location="Disabled")
        yield serve.run(Counts.bind(), name="counts", route_prefix=None).options(stream=True)
        serve.shutdown()


def said(path):
    """All that upstream has said, once it has ended."""
    deadline = time.monotonic() + 20
    while "end\n" not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return len(path.read_text().splitlines()) - 1


def test_cancel_stops_upstream(handle, tmp_path):
    path = tmp_path / "said"
    answer = handle.remote(str(path))
    assert [next(iter(answer))[1] for _ in range(5)] == [0, 1, 2, 3, 4]
    answer.cancel()
    assert said(path) < ITEMS


def test_dropping_does_not_stop_upstream(handle, tmp_path):
    path = tmp_path / "said"
    answer = handle.remote(str(path))
    assert next(iter(answer))[1] == 0
    del answer
    gc.collect()
    assert said(path) == ITEMS


def test_a_killed_replica_is_an_actor_error_and_the_answer_is_resumed_once(handle, tmp_path):
    got, errors = [], []
    for attempt in range(2):
        try:
            for pid, number in handle.remote(str(tmp_path / f"said-{attempt}"), len(got)):
                got.append(number)
                if len(got) == 5:
                    os.kill(pid, signal.SIGKILL)
            break
        except ray.exceptions.RayActorError as error:
            errors.append(error)
    assert len(errors) == 1
    assert got == list(range(ITEMS))  # each exactly once


def test_a_stream_outlives_the_controller(handle, tmp_path):
    from ray.serve.context import _get_global_client

    answer = iter(handle.remote(str(tmp_path / "said")))
    got = [next(answer)[1]]
    ray.kill(_get_global_client()._controller, no_restart=False)
    got += [number for _, number in answer]
    assert got == list(range(ITEMS))
    later = handle.remote(str(tmp_path / "later"), ITEMS - 3)
    assert [number for _, number in later] == [ITEMS - 3, ITEMS - 2, ITEMS - 1]


def test_shared_arrays_are_read_only(handle):
    array = ray.get(ray.put(np.zeros(1_000_000)))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1.0
