import os

import pytest

from foreserve.core import WeightsRef
from foreserve.errors import EngineStartError
from foreserve.runtime.memory_digests import REMEMBERED, Digests, Stat

A, B = "a" * 64, "b" * 64
STAT, OTHER = Stat(1, 2, 3, 4), Stat(1, 3, 3, 4)


def ref(**more):
    return WeightsRef(name="w", **{"source": "/w", **more})


def test_a_file_is_known_by_itself_until_its_digest_is():
    digests = Digests(None)
    assert digests.keys(ref(), "py", STAT) == ["file:1:2:3:4"]
    digests.learn(STAT, A)
    digests.learn(OTHER, A)
    assert digests.keys(ref(), "py", STAT) == digests.keys(ref(), "py", OTHER) == [f"sha256:{A}"]


def test_what_has_to_be_checked_first_is_nobody_elses():
    digests = Digests(None)
    assert digests.keys(ref(sha256=A.upper()), "py", STAT) == [f"sha256:{A}", f"file:1:2:3:4={A}"]
    digests.learn(STAT, A)
    assert digests.keys(ref(sha256=A), "py", STAT) == [f"sha256:{A}"]
    with pytest.raises(EngineStartError, match=f"/w has the SHA-256 {A}, not {B}"):
        digests.keys(ref(sha256=B), "py", STAT)


def test_loaders_and_addresses(tmp_path):
    digests = Digests(None)
    assert digests.keys(ref(kind="uri", source="https://x/y"), "py", None) == ["uri:https://x/y"]
    assert digests.keys(ref(kind="loader", source="a:b"), "py", None) == ["loader:a:b@py"]
    file = tmp_path / "l.py"
    file.write_text("")
    source = f"{file}:load"
    before = digests.keys(ref(kind="loader", source=source), "py", None)
    os.utime(file, ns=(1, 1))
    assert digests.keys(ref(kind="loader", source=source), "py", None) != before


def test_digests_are_kept_and_bounded(tmp_path, monkeypatch):
    path = tmp_path / "cache" / "weights.json"
    first, second = Digests(path), Digests(path)
    first.learn(STAT, A)
    second.learn(OTHER, B)  # neither loses what the other has learned
    assert [Digests(path).find(stat) for stat in (STAT, OTHER)] == [A, B]
    monkeypatch.setattr("foreserve.runtime.memory_digests.REMEMBERED", 2)
    first.learn(Stat(9, 9, 9, 9), A)
    assert len(Digests(path)._known) == 2 < REMEMBERED
    path.write_text("no json")
    assert Digests(path).find(STAT) is None


def test_where_nothing_can_be_kept_it_holds_for_the_process(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    digests = Digests(tmp_path / "file" / "weights.json")
    digests.learn(STAT, A)
    assert digests.find(STAT) == A
    assert "are not kept" in caplog.text
