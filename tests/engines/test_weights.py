import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from foreserve.core import WeightsRef
from foreserve.engines.binding import skeleton
from foreserve.engines.weights import TORCH, Weights, address
from foreserve.runtime import leases
from foreserve.runtime.leases import WeightsError
from foreserve.runtime.safetensors import DTYPES, arranged

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")
nn = torch.nn
save_file = pytest.importorskip("safetensors.torch").save_file


def weights(path: Path) -> Weights:
    leases.begin([WeightsRef(name=str(path), source=str(path))])
    return Weights(leases.get(str(path)), 10.0)


@pytest.fixture
def saved(tmp_path):
    """`saved(tensors)` as a file, as weights."""

    def save(tensors, name="w"):
        path = tmp_path / f"{name}.safetensors"
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
        return weights(path)

    return save


def at(tensor) -> int:
    return torch._C._data_address(tensor)


def shared(tensor, weights) -> bool:
    """Whether a tensor's memory is the mapping."""
    return 0 <= at(tensor) - address(weights.mapped) < weights.mapped.nbytes


# --- arrays and tensors


def test_arrays_look_into_the_mapping_and_cannot_be_written(saved):
    given = saved({"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7)})
    array = given.numpy("a")
    assert sorted(given.names()) == ["a", "n"]
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert given.numpy("n") == 7
    assert 0 < array.ctypes.data - address(given.mapped) < given.mapped.nbytes
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


@pytest.mark.parametrize("inference", [False, True])
def test_tensors_look_into_the_mapping_and_cannot_be_written(saved, inference):
    given = saved({"a": torch.arange(6.0).reshape(2, 3)})
    tensor = given.torch("a")
    with torch.inference_mode(inference):
        assert shared(tensor, given)
        assert torch.equal(tensor @ tensor.T, torch.tensor([[5.0, 14.0], [14.0, 50.0]]))
        writes = [
            lambda: tensor.add_(1), lambda: tensor.data.zero_(), lambda: tensor[0].fill_(1),
            lambda: tensor.copy_(tensor + 1), lambda: nn.init.normal_(tensor),
            lambda: torch.add(tensor, 1, out=tensor), lambda: tensor.t().clamp_(5),
            lambda: tensor.index_fill_(0, torch.tensor([0]), 1.0), lambda: tensor.numpy(),
        ]  # fmt: skip
        for write in writes:
            with pytest.raises(RuntimeError, match="data pointer"):
                write()
        assert tensor.clone().add_(1).sum() == 21  # a copy is one's own
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype(tmp_path, dtype):
    head, _ = arranged({"a": (dtype, (2, 2)), "none": (dtype, (0,))}, "x")
    data = bytes([1, 0] * (DTYPES[dtype] * 2))
    (tmp_path / "w").write_bytes(head + data)
    given = weights(tmp_path / "w")
    tensor = given.torch("a")
    assert tensor.dtype == getattr(torch, TORCH[dtype])
    assert bytes(tensor.clone().reshape(-1).view(torch.uint8).tolist()) == data
    assert given.torch("none").shape == (0,)
    if dtype.startswith(("BF", "F8")):
        with pytest.raises(WeightsError, match=r"use \.torch\('a'\)"):
            given.numpy("a")
    else:
        assert given.numpy("a").tobytes() == data


def test_what_a_file_has_not_aligned_is_copied(tmp_path):
    header = (
        b'{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    )
    data = bytes(1) + numpy.array([1.5, 2.5], "float32").tobytes()
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header + data)
    given = weights(tmp_path / "w")
    assert given.torch("a").tolist() == given.numpy("a").tolist() == [1.5, 2.5]
    assert not shared(given.torch("a"), given)


def test_a_tensor_that_is_not_there(saved):
    with pytest.raises(WeightsError, match="no tensor is called 'wieght'; did you mean 'weight'"):
        saved({"weight": torch.ones(1)}).torch("wieght")


def test_tensors_keep_the_mapping(saved):
    given = saved({"a": torch.arange(100_000.0)})
    tensor = given.torch("a")
    with leases._lock:
        leases._pending.clear()
    del given
    assert tensor[[0, -1]].tolist() == [0, 99_999]


# --- modules


class Nested(nn.Module):
    """Ties across modules, a buffer that is written, one without a place in any file, and recurrent layers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.lstm = nn.LSTM(4, 4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, tokens):
        self.calls += 1
        hidden = self.inner(self.embed(tokens)) + self.table
        return self.head(self.lstm(hidden)[0])


def made():
    torch.manual_seed(0)
    model = Nested().eval()
    model.inner[1].running_mean += 0.5
    return model


TOKENS = torch.tensor([1, 2, 3])


@pytest.mark.parametrize("tied", ["embed.weight", "head.weight"])
def test_a_module_is_bound_without_a_copy(saved, tied):
    model = made()
    state = model.state_dict()
    del state["head.weight" if tied == "embed.weight" else "embed.weight"]
    given = saved(state)
    other = Nested().eval()
    given.bind(other)
    assert all(shared(parameter, given) and not parameter.requires_grad for parameter in other.parameters())
    assert not any(shared(buffer, given) for buffer in other.buffers())
    assert other.head.weight is other.embed.weight
    with torch.inference_mode():
        assert torch.equal(other(TOKENS), model(TOKENS))
        assert other.lstm._flat_weights[0] is other.lstm.weight_ih_l0
    with pytest.raises(RuntimeError, match="data pointer"):
        other.embed.weight.data.zero_()


def test_a_mutable_buffer_is_private_so_calls_are_alike(saved):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x):
            self.seen += x
            return self.weight * self.seen

    given = saved(Counting().state_dict())
    outputs = []
    for _ in range(2):  # two invocations, each with a skeleton of its own over the same weights
        model = Counting()
        given.bind(model)
        outputs.append(model(torch.ones(3)).tolist())
    assert outputs == [[1, 1, 1], [1, 1, 1]]


def test_a_prefix_chooses_a_part(saved):
    model = made()
    state = {f"model.{name}": tensor for name, tensor in model.inner.state_dict().items()} | {"other": torch.ones(1)}
    inner = Nested().inner.eval()
    saved(state).bind(inner, prefix="model.")
    assert torch.equal(inner(torch.ones(1, 4)), model.inner(torch.ones(1, 4)))


def test_both_names_of_a_tie_may_be_stored_when_they_are_equal(saved):
    state = {name: tensor.clone() for name, tensor in made().state_dict().items()}
    other = Nested()
    saved(state).bind(other)
    assert other.head.weight is other.embed.weight
    state["head.weight"] += 1
    with pytest.raises(WeightsError, match=r"embed\.weight and head\.weight differ, and the module has one for both"):
        saved(state, "differing").bind(Nested())


def test_what_does_not_fit_is_named_and_nothing_is_changed(saved):
    state = made().state_dict()
    del state["embed.weight"], state["head.weight"], state["calls"]
    state["inner.0.weight"] = torch.ones(4, 5)
    state["inner.0.bias"] = state["inner.0.bias"].bfloat16()
    state["table"] = torch.ones(4)
    state["extra"] = torch.ones(1)
    other = Nested()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    del state["table"]
    with pytest.raises(WeightsError) as told:
        saved(state).bind(other)
    words = str(told.value)
    assert "do not fit Nested" in words
    assert "missing: embed.weight, calls" in words
    assert "unexpected: extra" in words
    assert "shape of inner.0.weight is (4, 5), the module's is (4, 4)" in words
    assert "dtype of inner.0.bias is torch.bfloat16, the module's is torch.float32" in words
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


# --- Hugging Face


def test_a_hugging_face_model_on_the_meta_device_or_as_a_skeleton(tiny_llama):
    transformers = pytest.importorskip("transformers")
    given = weights(tiny_llama / "model.safetensors")
    config = transformers.AutoConfig.from_pretrained(tiny_llama)
    whole = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(WeightsError, match=r"buffers without a value.*rotary_emb\.inv_freq.*skeleton\(\)"):
        given.bind(empty)
    with skeleton():
        model = transformers.AutoModelForCausalLM.from_config(config)
    given.bind(model)
    model.eval()
    assert all(shared(parameter, given) for parameter in model.parameters())
    tokens = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, whole(tokens).logits)
    for (name, buffer), (_, real) in zip(model.named_buffers(), empty.named_buffers(), strict=True):
        owner = empty.get_submodule(name.rpartition(".")[0])
        assert real.is_meta
        owner.register_buffer(name.rpartition(".")[2], buffer.clone(), persistent=False)
    given.bind(empty.eval())  # parameters may be on `meta`
    with torch.inference_mode():
        assert torch.equal(empty(tokens).logits, whole(tokens).logits)


def test_a_skeleton_initialises_no_parameter_and_every_buffer():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with skeleton():
        model = Nested()
        nn.init.kaiming_uniform_(model.inner[0].weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.inner[1].running_var.tolist() == [1, 1, 1, 1]
    assert model.table.tolist() == [0, 1, 2, 3]


# --- a write that nothing refuses


def test_a_hard_write_ends_its_process_with_a_traceback_and_changes_nothing(saved):
    given = saved({"a": torch.arange(6.0)})
    script = textwrap.dedent(f"""
        import faulthandler
        faulthandler.enable()
        from tests.engines.test_weights import Path, weights

        def scribble(tensor):
            tensor.zero_()

        scribble(weights(Path({given.mapped.name!r})).torch("a", guarded=False))
    """)
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.returncode == -11
    assert "Segmentation fault" in done.stderr
    assert "in scribble" in done.stderr
    assert given.torch("a").tolist() == [0, 1, 2, 3, 4, 5]
