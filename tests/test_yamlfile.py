from __future__ import annotations

from pathlib import Path

import pytest

from foreserve.errors import ConfigError
from foreserve.yamlfile import MAX_BYTES, Document


def read(tmp_path: Path, text: str | bytes) -> Document:
    file = tmp_path / "app.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Document.read(file)


def words(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    return str(caught.value).removeprefix(f"{tmp_path}/")


def test_it_is_plain_data(tmp_path: Path) -> None:
    document = read(tmp_path, "a: {b: [1, two, 3.5, true, null]}\nc: &x {d: 1}\ne: {<<: *x, f: 2}\n")
    assert document.data == {"a": {"b": [1, "two", 3.5, True, None]}, "c": {"d": 1}, "e": {"d": 1, "f": 2}}
    assert document.where == str(tmp_path / "app.yaml")
    assert document.folder == tmp_path.resolve()


def test_an_empty_file_is_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "").data is None
    assert read(tmp_path, "# only words\n").data is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "app.yaml, line 3: a: the key is here twice, first on line 1"),
        ("s:\n  x:\n    k: 1\n    k: 2\n", "app.yaml, line 4: s.x.k: the key is here twice, first on line 3"),
        ("s: [{k: 1, k: 1}]\n", "app.yaml, line 1: s[0].k: the key is here twice"),
        ("a: [1, 2\nb: 3\n", "app.yaml, line 2, column 2: while parsing a flow sequence"),
        ("a:\n\t- 1\n", "app.yaml, line 2, column 1: while scanning for the next token"),
        ("a: *nowhere\n", "app.yaml, line 1, column 4: found undefined alias 'nowhere'"),
        ("a: 1\n---\nb: 2\n", "app.yaml, line 2, column 1: expected a single document"),
        ("a: !!python/object/apply:os.system [id]\n", "app.yaml, line 1, column 4: could not determine a constructor"),
        ("a: &x\n  b: *x\n", "app.yaml, line 1: an alias that holds itself"),
        ("{[1, 2]: 3}\n", "app.yaml, line 1, column 2: while constructing a mapping: found unhashable key"),
        (b"a: \xff\xfe\n", "app.yaml: not UTF-8 text"),
        (b"a: \x00\n", "app.yaml: "),
        ("x" * (MAX_BYTES + 1), "app.yaml: larger than"),
        ("a: 2024-13-45\n", "app.yaml: month must be in 1..12"),
    ],
)
def test_what_cannot_be_read_says_where(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert words(tmp_path, text).startswith(expected)


def test_aliases_of_aliases_are_bounded(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "aliases counted" in words(tmp_path, "\n".join(lines))


def test_nesting_without_end_is_an_error(tmp_path: Path) -> None:
    assert words(tmp_path, "[" * 20_000).startswith("app.yaml")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Document.read(tmp_path)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("services.chat.queue.max", 4),
        ("services.chat", 2),
        ("services.chat.nowhere", 2),
        ("services.chatter", 1),
        ("services.list[1].x", 8),
        ("services.my-model.kind", 9),
        ("services.my", 1),
    ],
)
def test_an_error_that_names_a_key_gets_its_line(tmp_path: Path, key: str, line: int) -> None:
    document = read(
        tmp_path,
        "services:\n  chat:\n    queue:\n      max: 1\n\n  list:\n    - {x: 1}\n    - {x: 2}\n  my-model: {kind: 1}\n",
    )
    with pytest.raises(ConfigError) as caught, document.lines_in_errors():
        raise ConfigError(f"{document.where}: {key}: is wrong")
    assert str(caught.value) == f"{document.where}, line {line}: {key}: is wrong"


def test_an_error_about_something_else_stays_as_it_is(tmp_path: Path) -> None:
    document = read(tmp_path, "services: {}\n")
    for message in ("elsewhere: services: x", f"{document.where}: nothing like it"):
        with pytest.raises(ConfigError) as caught, document.lines_in_errors():
            raise ConfigError(message)
        assert str(caught.value) == message
