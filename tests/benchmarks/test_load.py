from benchmarks.load import send
from tests.loadgen.server import serving

from foreserve.loadgen.arrivals import ClosedLoop
from foreserve.loadgen.client import ClientOptions
from foreserve.loadgen.prompts import built_in
from foreserve.loadgen.run import Limits
from foreserve.loadgen.stats import summarise


async def test_a_load_from_a_benchmark():
    async with serving() as fake:
        run = await send(ClientOptions(url=fake.url, model="tiny"), built_in(), ClosedLoop(2), Limits(requests=6))
    assert summarise(run.results).done == 6
