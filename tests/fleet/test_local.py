import pytest

from foreserve.fleet.local import LocalLauncher
from tests.fleet.conformance import Conformance


class TestLocal(Conformance):
    @pytest.fixture
    async def launcher(self):
        launcher = LocalLauncher()
        yield launcher
        await launcher.close()
