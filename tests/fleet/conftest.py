import pytest

from foreserve.fleet.memory import Memory
from foreserve.settings import RuntimeSettings


@pytest.fixture
async def made(tmp_path):
    """`made(**settings)`: a memory, closed at the end."""
    memories = []

    def make(**settings):
        memories.append(Memory(RuntimeSettings(**settings), tmp_path / "cache"))
        return memories[-1]

    yield make
    for memory in memories:
        await memory.close()
