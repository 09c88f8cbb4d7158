"""The port itself: what is written once is seen by who maps it, there alone and for reading alone."""

import ctypes
import os
import sys

import pytest

from foreserve.runtime import device_cuda, device_driver
from foreserve.runtime.device import DeviceError, NoRoom, identity, open_memory, open_window
from foreserve.runtime.memory_sources import memory
from tests.devices import DEVICES, use

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are handed out on Linux")

MIB = 2**20


@pytest.fixture(params=DEVICES)
def name(request, tmp_path_factory, monkeypatch):
    yield use(request.param, tmp_path_factory.getbasetemp(), monkeypatch)
    device_driver.driver.cache_clear()


@pytest.fixture
def driver(tmp_path_factory, monkeypatch):
    yield use("driver", tmp_path_factory.getbasetemp(), monkeypatch)
    device_driver.driver.cache_clear()


@pytest.fixture
def source(tmp_path):
    """A file of 11 MiB and a little, more than one pinned buffer holds."""
    path = tmp_path / "data"
    path.write_bytes(os.urandom(11 * MIB + 17))
    fd = os.open(path, os.O_RDONLY)
    yield fd, path.read_bytes()
    os.close(fd)


def written(name, source):
    fd, data = source
    allocation = open_memory(identity(name)).allocate(len(data))
    for begin in range(0, len(data), 3 * MIB):
        allocation.write(begin, fd, begin, min(begin + 3 * MIB, len(data)))
    allocation.finish()
    return allocation


def seen(window, size):
    if isinstance(window, device_cuda.CudaWindow) and device_driver.LIBRARY not in os.environ:
        from foreserve.engines.weights import _of_device

        return _of_device(window, 0, size).cpu().numpy().tobytes()
    return ctypes.string_at(window.address, size)


def test_what_is_written_is_seen_at_one_address_again_and_again(name, source):
    allocation = written(name, source)
    assert allocation.size >= len(source[1])
    window = open_window(name, len(source[1]))
    at = window.address
    for _ in range(2):
        window.map(allocation.fd)
        assert window.address == at
        assert seen(window, len(source[1])) == source[1]
        window.unmap()
    other = open_window(name, len(source[1]))
    other.map(allocation.fd)
    allocation.free()  # whoever has mapped it keeps it
    assert seen(other, len(source[1])) == source[1]
    other.unmap()


def test_a_copy_is_taken_over_by_its_descriptor(name, source):
    allocation = written(name, source)
    fd = os.dup(allocation.fd)
    taken = open_memory(identity(name)).adopt(fd, allocation.size)
    os.close(fd)
    allocation.free()
    window = open_window(name, len(source[1]))
    window.map(taken.fd)
    assert seen(window, len(source[1])) == source[1]
    window.unmap()
    taken.free()


def test_what_is_no_copy_is_not_taken_over(name, source):
    with pytest.raises(DeviceError):
        open_memory(identity(name)).adopt(source[0], 4 * MIB)


def test_a_source_that_has_become_shorter_is_told(name, tmp_path):
    fd = memory()
    os.write(fd, b"x" * 100)
    allocation = open_memory(identity(name)).allocate(2 * MIB)
    with pytest.raises(DeviceError, match="shorter"):
        allocation.write(0, fd, 0, 200)
    allocation.free()
    os.close(fd)


@pytest.mark.parametrize("kind", ["host-copy:4", "driver"])
def test_a_device_has_so_much_and_what_is_freed_is_there_again(kind, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("STAND_IN_MIB", "4")
    name = kind if kind != "driver" else use(kind, tmp_path_factory.getbasetemp(), monkeypatch)
    device = open_memory(identity(name))
    first = device.allocate(3 * MIB)
    with pytest.raises(NoRoom):
        device.allocate(3 * MIB)
    first.free()
    device.allocate(3 * MIB).free()
    device_driver.driver.cache_clear()


def test_names_are_checked_and_say_what_is_valid():
    with pytest.raises(DeviceError, match="'gpu' is no device; valid: cpu, cuda, cuda:0"):
        identity("gpu")
    with pytest.raises(DeviceError):
        open_memory("gpu")
    assert identity("host-copy:3") == "host-copy:3"


# --- CUDA, over the driver that stands in for it


def test_a_gpu_is_known_by_what_is_burnt_into_it(driver):
    assert identity("cuda") == identity("cuda:0") == "cuda:" + "ab" * 16
    with pytest.raises(DeviceError, match="cuDeviceGet"):
        identity("cuda:1")
    with pytest.raises(DeviceError, match="does not see the GPU ffff; it sees 1"):
        open_memory("cuda:ffff")


@pytest.mark.parametrize(("lacks", "words"), [("102", "address"), ("103", "hand out")])
def test_a_gpu_that_cannot_share_memory_is_told(driver, monkeypatch, lacks, words):
    monkeypatch.setenv("STAND_IN_LACKS", lacks)
    with pytest.raises(DeviceError, match=words):
        open_memory(identity("cuda"))


def test_no_context_and_no_address_is_left_behind(driver, source):
    """The owner has a context only while it writes: on a GPU that is hundreds of MiB."""
    contexts = ctypes.CDLL(os.environ[device_driver.LIBRARY]).stand_in_contexts
    before = contexts()
    for _ in range(300):  # the stand-in has room for 255 handles and addresses
        device = open_memory(identity("cuda"))
        allocation = device.allocate(2 * MIB)
        allocation.write(0, source[0], 0, 1000)
        allocation.finish()
        allocation.free()
    assert contexts() == before


def test_a_write_that_fails_leaves_nothing_behind(driver, source):
    for _ in range(300):
        allocation = open_memory(identity("cuda")).allocate(2 * MIB)
        with pytest.raises(DeviceError, match="invalid argument"):
            allocation.write(8 * MIB, source[0], 0, 1000)  # beyond its end
        allocation.free()


def test_a_copy_of_another_size_than_it_is_said_to_have_is_not_taken_over(driver):
    device = open_memory(identity("cuda"))
    allocation = device.allocate(4 * MIB)
    allocation.finish()
    for _ in range(300):  # and nothing of it is left behind
        for size in (2 * MIB, 8 * MIB, 4 * MIB - 1, 0):
            with pytest.raises(DeviceError, match=r"it is not of|whole pages"):
                device.adopt(allocation.fd, size)
    device.adopt(allocation.fd, 4 * MIB).free()
    allocation.free()


def failing(monkeypatch, *names):
    """The driver refuses these calls; gives those that it took otherwise."""
    real, taken = device_driver.driver().call, []

    def call(name, *arguments):
        if name in names:
            raise DeviceError(f"{name}: refused")
        real(name, *arguments)
        taken.append(name)

    monkeypatch.setattr(device_driver.driver(), "call", call)
    return taken


def test_addresses_that_cannot_be_read_are_not_left_mapped(driver, monkeypatch):
    allocation = open_memory(identity("cuda")).allocate(2 * MIB)
    allocation.finish()
    window = open_window("cuda", 2 * MIB)
    with monkeypatch.context() as patch:
        failing(patch, "cuMemSetAccess")
        with pytest.raises(DeviceError, match="cuMemSetAccess"):
            window.map(allocation.fd)
    window.map(allocation.fd)  # refused where something is mapped already
    window.unmap()
    allocation.free()


def test_what_cannot_be_freed_keeps_nothing_else(driver, monkeypatch):
    contexts = ctypes.CDLL(os.environ[device_driver.LIBRARY]).stand_in_contexts
    before = contexts()
    allocation = open_memory(identity("cuda")).allocate(2 * MIB)
    with monkeypatch.context() as patch:
        taken = failing(patch, "cuStreamDestroy_v2", "cuEventDestroy_v2")
        with pytest.raises(DeviceError, match="refused"):
            allocation.finish()
    assert taken.count("cuMemFreeHost") == device_cuda.STAGES
    assert taken[-4:] == ["cuMemUnmap", "cuMemAddressFree", "cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2"]
    assert contexts() == before
    allocation.free()


def test_without_a_driver_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv(device_driver.LIBRARY, str(tmp_path / "none.so"))
    device_driver.driver.cache_clear()
    with pytest.raises(DeviceError, match="there is no driver of CUDA here"):
        identity("cuda")
    device_driver.driver.cache_clear()
