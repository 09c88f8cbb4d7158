import pytest

from foreserve.fleet.ray import Demand, RayLauncher
from foreserve.fleet.ray_cluster import Cluster
from tests.fleet.conformance import Conformance
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


class TestRay(Conformance):
    pass
