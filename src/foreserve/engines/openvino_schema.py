"""What of a JSON schema may reach the pipeline: compiling one happens inside a step, while everybody waits.

Measured on two cores: a step compiles a schema of 400 plain properties in about a second, and one of 50 strings with
length bounds in several. Beyond the bounds here it takes minutes, which would be taken for a hang.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

MAX_BYTES = 16 * 1024
MAX_DEPTH = 64
MAX_COSTLY = 16
"""How many bounds of a string's length or form one schema may have: each is unrolled by itself."""

_COSTLY = frozenset({"minLength", "maxLength", "pattern", "patternProperties", "format"})
_REMEMBERED = 256


class SchemaCheck:
    """Refuses schemas that are no JSON, too large, or were found before to be ones that cannot be compiled."""

    def __init__(self) -> None:
        self._bad: OrderedDict[str, str] = OrderedDict()

    def remember(self, schema: str, why: str) -> None:
        """This one made a step fail: refuse it from now on."""
        self._bad[schema] = why
        if len(self._bad) > _REMEMBERED:
            self._bad.popitem(last=False)

    def refusal(self, schema: str) -> str | None:
        """Why it cannot be used, in words; `None` when nothing speaks against it yet."""
        if len(schema.encode()) > MAX_BYTES:
            return f"`json_schema` is longer than {MAX_BYTES} bytes"
        try:
            parsed = msgspec.json.decode(schema)
        except (msgspec.DecodeError, RecursionError) as error:
            return f"`json_schema` is not JSON: {error}"
        if not isinstance(parsed, dict):
            return f"`json_schema` must be an object, not {type(parsed).__name__}"
        return _too_much(parsed) or self._bad.get(schema)


def _too_much(schema: dict[str, Any]) -> str | None:
    costly = 0
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        costly += sum(key in _COSTLY for value in level if isinstance(value, dict) for key in value)
        if costly > MAX_COSTLY:
            return f"`json_schema` has more than {MAX_COSTLY} of: {', '.join(sorted(_COSTLY))}"
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return None
    return f"`json_schema` is nested more than {MAX_DEPTH} deep"


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
