"""Modules of torch over the copy on a device that all workers share."""

import logging
import sys
from pathlib import Path

import pytest

from foreserve.core import WeightsRef
from foreserve.engines.binding import skeleton
from foreserve.engines.weights import Weights
from foreserve.fleet.memory import Memory
from foreserve.runtime import leases
from foreserve.runtime.leases import WeightsError
from foreserve.settings import RuntimeSettings
from tests.devices import use
from tests.fleet.holding import until

torch = pytest.importorskip("torch")
nn = torch.nn
save_file = pytest.importorskip("safetensors.torch").save_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are handed out on Linux")


@pytest.fixture(params=["host-copy", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request, tmp_path, monkeypatch):
    return use(request.param, tmp_path, monkeypatch)


@pytest.fixture
async def owner(monkeypatch):
    memory = Memory(RuntimeSettings())
    for name, value in memory.env().items():
        monkeypatch.setenv(name, value)
    memory.prefetch([WeightsRef(name="none", source="/nowhere")]).release()
    await until(lambda: memory.pid is not None)  # from here on this loop may stand still
    yield memory
    await memory.close()


def declared(path: Path, device: str) -> Weights:
    leases.begin([WeightsRef(name=str(path), source=str(path), device=device)])
    return Weights(leases.get(str(path)), 20.0)


class Net(nn.Module):
    """Tied, with buffers that are stored, that are not, and that it writes."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.full((8,), 0.5), persistent=False)

    def forward(self, ids):
        return self.head(self.norm(self.embedding(ids)) * self.scale)


async def bound(tmp_path, device):
    torch.manual_seed(0)
    made = Net()
    path = tmp_path / "net.safetensors"
    save_file({name: value for name, value in made.state_dict().items() if name != "head.weight"}, path)
    weights = declared(path, device)
    with skeleton():
        net = Net()
    weights.bind(net)
    return made, net, weights


def within(tensor, weights):
    """Whether it is memory of the window."""
    window = leases.get(weights._pending.ref.name).placed.wait(1.0)
    return 0 <= torch._C._data_address(tensor) - window.address < weights.mapped.nbytes


async def test_parameters_are_the_shared_copy_ties_are_kept_and_buffers_are_private(owner, tmp_path, device):
    made, net, weights = await bound(tmp_path, device)
    assert weights.shared
    assert weights.device == ("cpu" if device == "host-copy" else device)
    assert net.head.weight is net.embedding.weight
    for parameter in net.parameters():
        assert str(parameter.device) == weights.device
        assert within(parameter, weights)
        assert not parameter.requires_grad
    for buffer in net.buffers():
        assert str(buffer.device) == weights.device
        assert not within(buffer, weights)
    ids = torch.arange(12)
    with torch.inference_mode():
        for mode in (True, False):  # the first writes running statistics
            expected = made.train(mode)(ids)
            assert torch.allclose(net.train(mode)(ids.to(weights.device)).cpu(), expected, atol=1e-5)


async def test_a_second_one_answers_alike_whatever_the_first_has_written_to_its_buffers(owner, tmp_path, device):
    _, first, weights = await bound(tmp_path, device)
    _, second, _ = await bound(tmp_path, device)
    ids = torch.arange(12).to(weights.device)
    with torch.inference_mode():
        expected = second.eval()(ids)
        first.train()(ids)
        assert torch.equal(second(ids), expected)


async def test_numpy_is_still_the_copy_in_the_hosts_memory(owner, tmp_path, device):
    made, _, weights = await bound(tmp_path, device)
    assert (weights.numpy("embedding.weight") == made.embedding.weight.detach().numpy()).all()


async def test_every_kind_of_tensor_is_there(owner, tmp_path, device):
    given = {
        "a": torch.arange(5, dtype=torch.uint8),
        "b": torch.randn(3, 2).to(torch.bfloat16),
        "c": torch.randn(()).double(),
        "d": torch.zeros((0, 4)),
        "e": torch.tensor([True, False, True]),
    }
    save_file(given, tmp_path / "kinds.safetensors")
    weights = declared(tmp_path / "kinds.safetensors", device)
    for name, tensor in given.items():
        found = weights.torch(name)
        assert str(found.device) == weights.device
        assert found.dtype == tensor.dtype
        assert torch.equal(found.cpu(), tensor)


async def test_where_no_copy_can_be_shared_it_is_this_process_that_has_one(tmp_path, monkeypatch, device, caplog):
    monkeypatch.delenv(leases.MEMORY, raising=False)
    with caplog.at_level(logging.WARNING):
        made, net, weights = await bound(tmp_path, device)
        assert not weights.shared
    assert caplog.text.count("a copy of this process's own is on") == 1
    assert "this process has no memory owner" in caplog.text
    ids = torch.arange(12)
    with torch.inference_mode():
        assert torch.allclose(net.eval()(ids.to(weights.device)).cpu(), made.eval()(ids), atol=1e-5)


@pytest.mark.skipif("torch.cuda.is_available()", reason="there is a GPU")
async def test_weights_on_a_gpu_that_is_not_there_are_told(owner, tmp_path):
    with pytest.raises(WeightsError, match=r"are wanted on cuda:0, and torch .* sees no GPU"):
        await bound(tmp_path, "cuda:0")
