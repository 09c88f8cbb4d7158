import pytest
from tests.fleet.conformance import Conformance

from foreserve.fleet.local import LocalLauncher


class TestLocal(Conformance):
    @pytest.fixture
    async def launcher(self):
        launcher = LocalLauncher()
        yield launcher
        await launcher.close()
