import pytest

from foreserve.engines.simulated import SimulatedEngine
from tests.engines.contract import Contract, ModelContract, Subject, work


async def started(engine):
    return Subject(engine, await engine.start())


class TestSimulatedContinuous(Contract):
    @pytest.fixture
    async def subject(self):
        subject = await started(SimulatedEngine(slots=4, context_tokens=64, emit_every=3, decode_s=0.005))
        yield subject
        await subject.engine.close()

    @pytest.fixture
    async def tight(self):
        subject = await started(SimulatedEngine(slots=6, kv_tokens=128, decode_s=0.005))
        yield subject
        await subject.engine.close()


class TestSimulatedStatic(Contract):
    @pytest.fixture
    async def subject(self):
        engine = SimulatedEngine(batching="static", slots=4, context_tokens=64, emit_every=3, decode_s=0.005)
        subject = await started(engine)
        yield subject
        await subject.engine.close()

    @pytest.fixture
    def tight(self):
        pytest.skip("a static batch is chosen to fit before it comes to the engine")


class TestTransformers(Contract, ModelContract):
    @pytest.fixture
    async def subject(self, tiny_llama):
        from foreserve.engines.transformers import TransformersEngine

        subject = await started(TransformersEngine(model_path=str(tiny_llama), max_running=4, weights="f32"))
        yield subject
        await subject.engine.close()

    @pytest.fixture
    def tight(self):
        pytest.skip("the engine's KV memory is not bounded")


_openvino: dict[str, Subject] = {}


@pytest.fixture(autouse=True, scope="module")
def free():
    yield
    _openvino.clear()


async def shared_openvino(smollm2, name, **options):
    """One engine for all tests that want it alike: an idle engine is bound to no event loop."""
    from foreserve.engines.openvino import OpenVINOEngine

    if name not in _openvino:
        _openvino[name] = await started(OpenVINOEngine(**smollm2, **options))
    return Subject(_openvino[name].engine, _openvino[name].info)


@pytest.mark.model
@pytest.mark.slow
class TestOpenVINO(Contract, ModelContract):
    long = 100

    @pytest.fixture
    async def subject(self, smollm2):
        return await shared_openvino(smollm2, "plain", max_running=4, kv_cache_gb=0.2, context_tokens=512)

    @pytest.fixture
    async def tight(self, smollm2):
        return await shared_openvino(smollm2, "tight", max_running=6, kv_cache_gb=0.006)

    async def test_exact_mode_does_not_depend_on_the_batch(self, smollm2):
        exact = await shared_openvino(smollm2, "exact", max_running=4, kv_cache_gb=0.1, exact=True)
        works = [work(f"r{i}", output=24, prompt=range(100 * i + 100, 100 * i + 120)) for i in range(4)]
        alone = [(await exact.run(each))[0].ids for each in works]
        together = [answer.ids for answer in await exact.run(*works)]
        assert together == alone
