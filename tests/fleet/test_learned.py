from __future__ import annotations

import pytest

from foreserve.fleet import learned
from foreserve.fleet.learned import Learned, Remembered


def test_what_is_missing():
    one = Learned(python="p", imports=("a",))
    one.add(["x", "y"])
    one.add(["y", "z"])
    assert one.missing(()) == ("x", "y", "z")
    assert one.missing({"y"}) == ("x", "z")
    one.bad["x"] = "it starts threads"
    assert one.missing({"y"}) == ("z",)
    one.refused = "workers set X"
    assert one.missing(()) == ()


def test_another_mark_forgets_all():
    one = Learned(python="p", imports=("a",), mark="m", took_s=1.0, refused="r")
    one.add(["x"])
    one.bad["y"] = "it starts threads"
    one.under("m")
    assert (one.modules, one.refused) == (["x"], "r")
    one.under("n")
    assert one == Learned(python="p", imports=("a",), mark="n")


def test_names_are_bounded(monkeypatch):
    monkeypatch.setattr(learned, "MOST_CHARACTERS", 20)
    one = Learned(python="p", imports=())
    one.add(["12345", "67890", "x"])
    assert one.modules == ["12345", "67890"]
    one.add(["12345", "x"])
    assert one.modules == ["12345", "67890"]


def test_it_is_kept_beside_what_others_keep(tmp_path):
    path = tmp_path / "state" / "imports.json"
    first, second = Remembered(path), Remembered(path)
    for remembered, python in ((first, "p"), (second, "q")):
        one = remembered.of(python, ("a",))
        one.under("m")
        one.add([f"of_{python}"])
        remembered.keep(remembered.snapshot(one))
    third = Remembered(path)
    third.load()
    assert third.of("p", ("a",)).modules == ["of_p"]
    assert third.of("q", ("a",)).missing(()) == ("of_q",)
    assert third.of("q", ("b",)).modules == []
    assert [file.name for file in path.parent.iterdir()] == ["imports.json"]


def test_the_last_word_counts_and_their_number_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(learned, "MOST_LEARNED", 2)
    path = tmp_path / "imports.json"
    remembered = Remembered(path)
    for name in ("a", "b", "a", "c"):
        one = remembered.of("p", (name,))
        one.add([f"{len(one.modules)}"])
        remembered.keep(remembered.snapshot(one))
    again = Remembered(path)
    again.load()
    assert again.of("p", ("a",)).modules == ["0", "1"]
    assert again.of("p", ("c",)).modules == ["0"]
    assert again.of("p", ("b",)).modules == []


@pytest.mark.parametrize("content", [None, b"", b"{", b'[{"python": 3}]'])
def test_a_file_that_cannot_be_read_is_as_none(tmp_path, content):
    path = tmp_path / "imports.json"
    if content is not None:
        path.write_bytes(content)
    remembered = Remembered(path)
    remembered.load()
    one = remembered.of("p", ())
    assert one == Learned(python="p", imports=())
    remembered.keep(remembered.snapshot(one))
    assert path.read_bytes().startswith(b"[")


def test_a_folder_that_cannot_be_written_is_told(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    remembered = Remembered(tmp_path / "file" / "imports.json")
    remembered.keep(remembered.snapshot(remembered.of("p", ())))
    assert "what workers import is not remembered" in caplog.text


def test_nowhere():
    remembered = Remembered()
    remembered.load()
    one = remembered.of("p", ())
    remembered.keep(remembered.snapshot(one))
    assert remembered.of("p", ()) is one
