import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foreserve.core import EngineSpec, WeightsRef
from foreserve.fleet.ray import Demand, RayLauncher
from foreserve.fleet.ray_cluster import Cluster
from foreserve.messages import Ready, Run, StartFailed
from tests.fleet.conformance import ENGINES, Conformance, Ear, spec, work
from tests.ray_cluster import MARKS, small_cluster

pytestmark = MARKS


@pytest.fixture(scope="module")
def cluster():
    with small_cluster() as ray:
        yield ray


@pytest.fixture
async def launcher(cluster):
    launcher = RayLauncher(Cluster(), demand=Demand(cpus=0.25))
    yield launcher
    await launcher.close()


@pytest.fixture
def ear():
    return Ear()


class TestRay(Conformance):
    pass


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(true, limit_s=20.0):
    async with asyncio.timeout(limit_s):
        while not true():  # noqa: ASYNC110  # other processes are looked at
            await asyncio.sleep(0.05)


async def test_an_engine_that_is_killed_ends_its_replica(launcher, ear):
    connection = await launcher.launch("echo-1", spec(), ear)
    pid = (await ear.first(Ready)).pid
    connection.send(Run((work("a", *"abcdefgh", step_s=0.2),)))
    await ear.until(lambda: ear.words("a"))
    os.kill(pid, signal.SIGKILL)
    assert await ear.gone() == "killed by SIGKILL"
    assert not any(chunk.finish for chunk in ear.chunks("a"))
    await connection.release()
    await until(lambda: not alive(connection.found.pid))


async def test_an_actor_that_is_killed_ends_its_engine_and_its_replica(launcher, ear):
    connection = await launcher.launch("echo-1", spec(), ear)
    pid = (await ear.first(Ready)).pid
    connection.send(Run((work("a", *"abcdefgh", step_s=0.2),)))
    await ear.until(lambda: ear.words("a"))
    os.kill(connection.found.pid, signal.SIGKILL)
    assert (await ear.gone()).startswith("its actor is gone: Worker unexpectedly exits")
    await until(lambda: not alive(pid))
    await connection.stop(1.0)
    assert len(ear.exits) == 1


async def test_a_replica_that_finds_no_node_has_failed_to_start(cluster, ear):
    launcher = RayLauncher(Cluster(), place_s=1.0)
    asking = launcher.asking(Demand(cpus=0.0, resources={"unobtainium": 2.0}))
    await asking.launch("echo-1", spec(), ear)
    words = "no node of the cluster has had room for it within 1 s: it asks for 2 unobtainium"
    assert words in (await ear.first(StartFailed)).reason
    assert await ear.gone() == words
    await launcher.close()


async def test_replicas_of_a_node_find_one_owner_of_weights(launcher, tmp_path):
    refs = (WeightsRef(name="weights", source=str(tmp_path / "none")),)
    owners = set()
    for number in range(2):
        ear = Ear()
        told = EngineSpec(factory=f"{ENGINES}:Tells", weights=refs)
        connection = await launcher.launch(f"tells-{number}", told, ear)
        owners.add((await ear.first(Ready)).info.facts["owner"])
        assert connection.node
    assert len(owners) == 1
    (owner,) = owners
    assert Path(owner).is_socket()  # noqa: ASYNC240
    await launcher.close()
    assert not Path(owner).exists()  # noqa: ASYNC240


ALONE = """
import asyncio, sys
from foreserve.fleet.ray import Demand, RayLauncher
from foreserve.fleet.ray_cluster import Cluster
from foreserve.messages import Ready
from tests.fleet.conformance import Ear, spec

async def main():
    ear = Ear()
    launcher = RayLauncher(Cluster(sys.argv[1]), demand=Demand(cpus=0.25))
    connection = await launcher.launch("echo-1", spec(), ear)
    print((await ear.first(Ready)).pid, connection.found.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_replicas_end_with_a_gateway_that_is_killed(cluster):
    address = cluster.get_runtime_context().gcs_address
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", ALONE, address]
    gateway = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, text=True)  # noqa: ASYNC220
    with gateway:
        line = await asyncio.to_thread(gateway.stdout.readline)
        pids = [int(word) for word in line.split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        gateway.kill()
    await until(lambda: not any(alive(pid) for pid in pids))
