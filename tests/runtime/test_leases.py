"""Weights of a process without an owner, and of one whose owner and gateway are gone."""

import hashlib
import os
import socket
import sys

import pytest

from foreserve.core import WeightsRef
from foreserve.errors import EngineStartError
from foreserve.runtime import leases
from foreserve.runtime.leases import Mapped, Pending, WeightsError, begin, get
from foreserve.runtime.safetensors import NotSafetensors, arranged


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv(leases.MEMORY, raising=False)
    monkeypatch.setattr(leases, "_pending", {})
    monkeypatch.setattr(leases, "_client", None)


@pytest.fixture
def file(tmp_path):
    head, _ = arranged({"a": ("U8", (4,)), "b": ("U8", (2,))}, "made")
    (tmp_path / "w").write_bytes(head + b"aaaabb")
    return tmp_path / "w"


def ref(source, name="w", **more):
    return WeightsRef(name=name, source=str(source), **more)


def test_a_file_is_mapped_to_be_read(file):
    begin([ref(file)])
    mapped = get("w").wait(10.0)
    assert get("w").done
    assert (bytes(mapped.data("a")), bytes(mapped.data("b"))) == (b"aaaa", b"bb")
    assert mapped.nbytes == file.stat().st_size == len(mapped.image)
    with pytest.raises(TypeError, match="read-only"):
        mapped.image[0] = 1
    with pytest.raises(KeyError):
        mapped.data("c")


def test_a_name_means_in_each_scope_what_was_begun_there(file, tmp_path):
    (tmp_path / "other").write_bytes(file.read_bytes())
    one, other = leases.scope(), leases.scope()
    one.run(begin, [ref(file)])
    other.run(begin, [ref(tmp_path / "other")])
    assert one.run(get, "w").ref == ref(file)
    assert other.run(get, "w").ref == get("w").ref == ref(tmp_path / "other")
    one.run(begin, [ref(file), ref(file, "more")])
    assert one.run(get, "w").wait(10.0) is not other.run(get, "w").wait(10.0)
    with pytest.raises(WeightsError, match="no weights are called 'more'; declared: w"):
        other.run(get, "more")
    again = leases.scope()
    again.run(begin, [ref(file)])
    assert again.run(get, "w") is one.run(get, "w")


def test_a_path_may_be_relative_or_at_home(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("HOME", str(file.parent))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    begin([ref("w", "here"), ref("~/w", "home"), ref("~/w", "checked", sha256=sha256)])
    assert get("here").wait(10.0).image == get("home").wait(10.0).image == get("checked").wait(10.0).image


def test_what_begins_again_stays_and_another_meaning_replaces_it(file, tmp_path):
    begin([ref(file)])
    first = get("w").wait(10.0)
    begin([ref(file)])
    assert get("w").wait(10.0) is first
    (tmp_path / "other").write_bytes(file.read_bytes())
    begin([ref(tmp_path / "other")])
    assert get("w").wait(10.0) is not first
    assert bytes(first.data("b")) == b"bb"


def test_a_failure_is_tried_again(file):
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    begin([ref(file)])
    with pytest.raises(WeightsError, match=r"weights 'w': .*/w: 'b', to byte \d+, reaches beyond 'the end'"):
        get("w").wait(10.0)
    file.write_bytes(content)
    begin([ref(file)])
    assert get("w").wait(10.0).nbytes == len(content)


def test_a_digest_is_checked(file):
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    begin([ref(file, sha256=sha256.upper()), ref(file, "wrong", sha256="0" * 64)])
    assert get("w").wait(10.0).sha256 == sha256
    with pytest.raises(WeightsError, match=f"has the SHA-256 {sha256}, not 000"):
        get("wrong").wait(10.0)


def test_a_loader_makes_them_in_a_process_of_its_own(tmp_path):
    pytest.importorskip("numpy")
    (tmp_path / "l.py").write_text(
        "import numpy, os\ndef load():\n    print('noise')\n    return {'pid': numpy.array([os.getpid()], 'int64')}\n"
    )
    begin([ref(f"{tmp_path}/l.py:load", kind="loader")])
    pid = int.from_bytes(get("w").wait(30.0).data("pid"), "little")
    assert pid != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_addresses_want_an_owner():
    begin([ref("https://models.example.org/w", kind="uri")])
    with pytest.raises(WeightsError, match="fetched for worker processes alone"):
        get("w").wait(10.0)


def test_a_wait_is_bounded_and_names_are_told(file):
    begin([ref(file)])
    with pytest.raises(WeightsError, match="no weights are called 'v'; declared: w"):
        get("v")
    with pytest.raises(WeightsError, match=r"weights 'w' \(x\) were not there after 0.01 s"):
        Pending(ref("x")).wait(0.01)
    assert issubclass(WeightsError, EngineStartError)
    with open(os.devnull) as empty, pytest.raises(NotSafetensors, match="it is empty"):
        Mapped("w", empty.fileno(), "x")


@pytest.mark.skipif(sys.platform != "linux", reason="owners are for Linux")
def test_without_gateway_and_owner_weights_are_got_alone(file, tmp_path, monkeypatch):
    monkeypatch.setattr("foreserve.runtime.memory_client.AGAIN_S", 0.001)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))  # nobody listens
    monkeypatch.setenv(leases.MEMORY, str(path))
    begin([ref(file)])
    assert bytes(get("w").wait(10.0).data("b")) == b"bb"
    begin([ref(file, "again")])
    assert bytes(get("again").wait(10.0).data("b")) == b"bb"


def test_a_fork_has_what_was_mapped_and_a_line_of_its_own(file):
    begin([ref(file)])
    get("w").wait(10.0)
    pid = os.fork()
    if not pid:
        mapped = bytes(get("w").wait(1.0).data("b")) == b"bb"
        begin([ref(file, "again")])
        os._exit(0 if mapped and bytes(get("again").wait(10.0).data("b")) == b"bb" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
