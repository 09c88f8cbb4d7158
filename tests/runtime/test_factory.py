import pytest

from foreserve.errors import EngineStartError
from foreserve.runtime.factory import in_words, load_factory, make


def test_a_module_and_a_nested_attribute():
    assert load_factory("collections:OrderedDict.fromkeys")("a") == {"a": None}


def test_a_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_it.py").write_text("WORD = 'near'")
    (tmp_path / "it.py").write_text("from neighbour_of_it import WORD\ndef engine(a): return WORD + a")
    assert make(load_factory, f"{tmp_path}/it.py:engine", {"a": "!"}) == "near!"


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("nothing", 'valid: "module:attribute" or "file.py:attribute"'),
        (":x", "names no callable"),
        ("not_there_at_all.x:y", "the package 'not_there_at_all' is not installed in"),
        ("collections:Nothing", "collections has no 'Nothing'; valid:"),
        ("string:digits", "is a str, not a class or function"),
    ],
)
def test_what_is_wrong_is_said(factory, words):
    with pytest.raises(EngineStartError) as error:
        load_factory(factory)
    assert words in str(error.value)


def test_a_file_that_fails_is_named_and_can_be_tried_again(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("1 / 0")
    with pytest.raises(EngineStartError, match=r"bad.py:x: cannot be imported: ZeroDivisionError"):
        load_factory(f"{file}:x")
    file.write_text("x = dict")
    assert load_factory(f"{file}:x") is dict


def test_other_errors_are_named_by_type():
    assert in_words("a:b", ValueError("no")) == "a:b: ValueError: no"
