"""A YAML file as plain data that remembers its lines, so that errors can name them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from foreserve.errors import ConfigError

MAX_BYTES = 2**20
MAX_KEYS = 10_000
"""An app file is a page; what is far larger was given by mistake, or grows from aliases of aliases."""


class Document:
    """`data` is what the file says, `where` how it is called in errors, `folder` what its relative paths start from."""

    def __init__(self, data: Any, where: str, folder: Path, lines: dict[str, int]) -> None:
        self.data = data
        self.where = where
        self.folder = folder
        self._lines = lines

    @classmethod
    def read(cls, file: Path) -> Self:
        """Raises ConfigError for what cannot be read, is not YAML, or names a key twice."""
        try:
            if file.stat().st_size > MAX_BYTES:
                raise ConfigError(f"{file}: larger than {MAX_BYTES} bytes; this is no app file")
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from None
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
        try:
            loader = yaml.SafeLoader(text)
            root = loader.get_single_node()
            lines: dict[str, int] = {}
            if root is not None:
                _walk(root, "", lines, [], str(file))
            data = None if root is None else loader.construct_document(root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = f"{file}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(file)
            words = ": ".join(part for part in (error.context, error.problem) if part)
            raise ConfigError(f"{place}: {words}") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{file}: {error}") from None
        return cls(data, str(file), file.resolve().parent, lines)

    @contextmanager
    def lines_in_errors(self) -> Iterator[None]:
        """A ConfigError that begins with `where: dotted.key` comes out with the line of that key."""
        try:
            yield
        except ConfigError as error:
            words = str(error)
            place = self._place(words.removeprefix(f"{self.where}: ")) if words.startswith(f"{self.where}: ") else None
            if place is None:
                raise
            line = f"{self.where}, line {self._lines[place]}: "
            raise ConfigError(line + words.removeprefix(f"{self.where}: ")) from error.__cause__

    def _place(self, words: str) -> str | None:
        """The longest known key that `words` begin with."""
        known = (key for key in self._lines if words.startswith(key) and not re.match(r"[\w-]", words[len(key) :]))
        return max(known, key=len, default=None)


def _walk(node: yaml.Node, path: str, lines: dict[str, int], above: list[yaml.Node], file: str) -> None:
    """Note the line of every key. Raises ConfigError for a key that comes twice and for a node within itself."""
    if any(node is each for each in above):
        raise ConfigError(f"{file}, line {node.start_mark.line + 1}: an alias that holds itself")
    if len(lines) > MAX_KEYS:
        raise ConfigError(f"{file}: more than {MAX_KEYS} keys, aliases counted; this is no app file")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines.setdefault(f"{path}[{index}]", item.start_mark.line + 1)
            _walk(item, f"{path}[{index}]", lines, [*above, node], file)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        full = f"{path}.{key.value}" if path else key.value
        if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
            raise ConfigError(f"{file}, line {line}: {full}: the key is here twice, first on line {seen[key.value]}")
        seen[key.value] = line
        lines.setdefault(full, line)
        _walk(value, full, lines, [*above, node], file)
