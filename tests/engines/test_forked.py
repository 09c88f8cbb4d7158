"""Real engines in workers that were forked after their libraries had been imported."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from foreserve import LLM
from foreserve.core import EngineSpec, Work
from foreserve.engines.generation import Generate
from foreserve.fleet.contexts import Contexts
from foreserve.fleet.local import LocalLauncher
from foreserve.messages import Ready, Run
from foreserve.runtime.forking import unsupported
from tests.fleet.conformance import Ear

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(bool(unsupported()), reason=unsupported()),
]


@pytest.fixture(autouse=True)
def one_environment(monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)


async def answer(launcher: LocalLauncher, spec: EngineSpec) -> list[int]:
    """Its ids, by a new replica."""
    ear = Ear()
    connection = await launcher.launch("x", spec, ear)
    await ear.until(lambda: ear.exits or any(isinstance(message, Ready) for message in ear.messages), 60)
    payload = msgspec.to_builtins(Generate(prompt=[5, 9, 300, 41], max_tokens=12, temperature=0.0, ignore_eos=True))
    connection.send(Run((Work(id="a", payload=payload, cost={}, arrival=0.0),)))
    assert (await ear.finish("a")).reason == "length"
    await connection.stop(5.0)
    return [token for chunk in ear.chunks("a") if chunk.data is not None for token in chunk.data["ids"]]


@pytest.mark.parametrize("engine", ["openvino", "transformers"])
async def test_a_forked_engine_answers_as_one_in_a_new_interpreter(engine, smollm2_prepared):
    pytest.importorskip({"openvino": "openvino_genai", "transformers": "transformers"}[engine])
    spec = LLM("smollm2", engine=engine, kv_cache_gb=0.1, threads=2).engines()[0]
    assert spec.imports
    contexts = Contexts()
    fresh, forked = LocalLauncher(), LocalLauncher(contexts=contexts)
    expected = await answer(fresh, spec)
    assert len(expected) == 12
    assert [await answer(forked, spec) for _ in range(2)] == [expected] * 2
    assert [context.offspring.forks for context in contexts.all] == [2]
    for launcher in (fresh, forked):
        await launcher.close()
    await contexts.close()


THREADS = """
import os
import torch

def threads() -> list[int]:
    torch.ones(2000, 200) @ torch.ones(200, 200)
    return [torch.get_num_threads(), os.getppid(), int(torch.randn(1) != 0)]
"""


async def test_a_forked_torch_has_the_threads_of_its_own_environment(tmp_path: Path):
    pytest.importorskip("torch")
    file = tmp_path / "threads.py"
    file.write_text(THREADS)
    contexts = Contexts()
    launcher = LocalLauncher(contexts=contexts)
    for wanted in (1, 2):
        spec = EngineSpec(
            factory="foreserve.engines.python:PythonEngine",
            options={"target": f"{file}:threads"},
            imports=("torch",),
            env={"OMP_NUM_THREADS": str(wanted)},
        )
        ear = Ear()
        connection = await launcher.launch("t", spec, ear)
        await ear.first(Ready)
        connection.send(Run((Work(id="a", payload={"args": {}}, cost={}, arrival=0.0),)))
        await ear.finish("a")
        assert ear.chunks("a")[0].data == [wanted, contexts.all[-1].pid, 1]
        assert contexts.all[-1].pid != os.getpid()
    await launcher.close()
    await contexts.close()
