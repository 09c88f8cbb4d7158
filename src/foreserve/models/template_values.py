"""What a chat template may do with values, each with its price, which is paid before the thing is done.

What can grow (`replace`, `join`, `*`, `%`, …) has its size worked out first; widths of the template's choice are
refused.
"""

from __future__ import annotations

import json
import operator
import re
import string
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from jinja2.filters import FILTERS as PLAIN_FILTERS
from jinja2.runtime import Undefined

from foreserve.models.template_budget import DICT_ITEM, LIST_ITEM, MAX_INT_BITS, OverBudget, Refused, current, text_of

CONTAINERS: Final = (dict, list, tuple)


def each(value: Any) -> list[Any]:
    """The items of what a template may loop over, as a list that is paid for."""
    if isinstance(value, Undefined):
        return list(value)
    if not isinstance(value, (str, list, tuple, dict)):
        raise TypeError(f"a {type(value).__name__} cannot be looped over")
    current.get().spend(work=1 + len(value) // 16, built=LIST_ITEM * len(value))
    return list(value)


def concat(values: list[Any]) -> str:
    """`a ~ b ~ c`."""
    parts = [text_of(value) for value in values]
    current.get().spend(work=len(parts), built=sum(map(len, parts)))
    return "".join(parts)


def cut(value: Any, start: Any, stop: Any, step: Any) -> Any:
    """`value[start:stop:step]`."""
    if not isinstance(value, (str, list, tuple)):
        raise TypeError(f"a {type(value).__name__} cannot be sliced")
    chosen = slice(start, stop, step)
    count = len(range(*chosen.indices(len(value))))
    current.get().spend(work=1, built=count if isinstance(value, str) else LIST_ITEM * count)
    return value[chosen]


_COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "lteq": operator.le, "gt": operator.gt,
    "gteq": operator.ge, "in": lambda a, b: a in b, "notin": lambda a, b: a not in b,
}  # fmt: skip


def compare(left: Any, op: str, right: Any) -> bool:
    """A comparison. Containers are compared only as far as their written-out size can be paid for."""
    budget = current.get()
    budget.spend(work=1)
    if op in ("in", "notin"):
        if isinstance(left, CONTAINERS) and isinstance(right, CONTAINERS):
            budget.measure(left)
            budget.measure(right)
        elif isinstance(right, str):
            budget.scan(right)
        elif isinstance(right, (list, tuple)):
            budget.spend(work=len(right))
        elif not isinstance(right, (dict, Undefined)):
            raise TypeError(f"a {type(right).__name__} cannot be searched")
    elif isinstance(left, CONTAINERS) and isinstance(right, CONTAINERS):
        budget.measure(left)
        budget.measure(right)
    elif isinstance(left, str) and isinstance(right, str):
        budget.scan(left)
    return bool(_COMPARISONS[op](left, right))


def compare_all(left: Any, *steps: Any) -> bool:
    """`left op a op b …`: a chain of comparisons, its operators and operands in turn."""
    for op, right in zip(steps[::2], steps[1::2], strict=True):
        if not compare(left, op, right):
            return False
        left = right
    return True


def number(value: Any) -> Any:
    """`value`, if it is no integer of a size that only an attack needs."""
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        raise OverBudget(f"an integer has more than {MAX_INT_BITS} bits")
    if isinstance(value, complex):
        raise ValueError("the result is not a real number")
    return value


def binary(op: str, native: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """An arithmetic operator, its result paid for first."""
    budget = current.get()
    budget.spend(work=1)
    if op == "%" and isinstance(left, str):
        return percent(left, right)
    for side, other in ((left, right), (right, left)):
        if isinstance(side, (str, list, tuple)):
            weight = 1 if isinstance(side, str) else LIST_ITEM
            if op == "*" and isinstance(other, int):
                budget.spend(built=weight * len(side) * max(0, other))
            elif op == "+" and isinstance(other, (str, list, tuple)):
                budget.spend(built=weight * len(side))
        elif not isinstance(side, (int, float, Undefined)):
            raise TypeError(f"{op} does not take a {type(side).__name__}")
    if isinstance(left, int) and isinstance(right, int):
        number(left), number(right)
        if op == "**" and right > 0 and left.bit_length() * right > MAX_INT_BITS:
            raise OverBudget(f"an integer has more than {MAX_INT_BITS} bits")
    return number(native(left, right))


def percent(pattern: str, values: Any) -> str:
    """`pattern % values`, without widths of more than two digits."""
    if isinstance(values, dict) or re.search(r"%[^%a-zA-Z]*(\*|\d{3})", pattern):
        raise OverBudget("a format asks for a width of more than 99, or for fields by name")
    budget = current.get()
    size = budget.measure(values)
    holes = pattern.count("%")
    budget.spend(built=len(pattern) + holes * (10 * size.chars + 8 * size.nodes + 512))
    return str(pattern % values)


def braces(pattern: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """`pattern.format(…)` with plain fields: `{}`, `{0}`, `{name}`."""
    out: list[str] = []
    following = iter(range(len(args)))
    for text, name, spec, conversion in string.Formatter().parse(pattern):
        out.append(text)
        if name is None:
            continue
        if spec or conversion or not (name == "" or name.isidentifier() or (name.isdecimal() and len(name) < 4)):
            raise OverBudget("only plain fields can be formatted: {}, {0}, {name}")
        out.append(text_of(kwargs[name] if name.isidentifier() else args[next(following) if name == "" else int(name)]))
        current.get().spend(work=1, built=len(out[-1]))
    current.get().spend(built=len(pattern))
    return "".join(out)


def replaced(text: str, old: Any, new: Any, count: Any = None) -> str:
    """`text.replace(old, new)`."""
    text, old, new = text_of(text), text_of(old), text_of(new)
    most = -1 if count is None else int(count)
    budget = current.get()
    budget.scan(text)
    found = text.count(old)
    budget.spend(built=len(text) + (found if most < 0 else min(found, most)) * len(new))
    return text.replace(old, new, most)


def joined(separator: str, values: Any) -> str:
    """`separator.join(values)`; the filter also writes out what is no string."""
    parts = [text_of(value) for value in each(values)]
    current.get().spend(work=len(parts), built=sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


def key(value: Any) -> Any:
    """`value`, if it is what JSON has as keys: hashing a nested tuple costs its written-out size."""
    if value is None or isinstance(value, (str, int, float, Undefined)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be a key")


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The `tojson` filter as chat templates know it: no HTML escapes."""
    step = len(indent) if isinstance(indent, str) else int(indent or 0)
    if step > 16 or any(len(part) > 8 for part in separators or ()):
        raise OverBudget("tojson is asked for an indent above 16 or long separators")
    budget = current.get()
    size = budget.measure(value)
    growth = 12 if ensure_ascii else 6 if size.chars > 10_000 else 1  # a control character takes six, one in pairs 12
    budget.spend(built=growth * size.chars + size.nodes * (step * (size.depth + 1) + 20))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def indented(text: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    """The `indent` filter."""
    text, width = text_of(text), width if isinstance(width, str) else int(width)
    budget = current.get()
    lines = 1 + sum(text.count(end) for end in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
    step = width if isinstance(width, int) else len(width)
    budget.spend(work=1 + lines // 16, built=3 * len(text) + lines * (DICT_ITEM + max(0, step)))
    return str(PLAIN_FILTERS["indent"](text, width, first, blank))


def total(values: Any, attribute: Any = None, start: Any = 0) -> Any:
    """The `sum` filter, of numbers."""
    items = each(values)
    if attribute is not None or not all(isinstance(item, (int, float)) for item in (*items, start)):
        raise TypeError("sum takes a list of numbers")
    return number(sum(map(number, items), start))


def now_as(layout: Any) -> str:
    """`strftime_now`: local time; widths are refused, since C's strftime would fill them."""
    if not isinstance(layout, str) or len(layout) > 128 or not re.fullmatch(r"(?:[^%]|%-?[A-Za-z%])*", layout):
        raise OverBudget("strftime_now takes at most 128 characters and no widths")
    return datetime.fromtimestamp(current.get().wall()).astimezone().strftime(layout)


def refuse(message: Any) -> None:
    """`raise_exception`."""
    raise Refused(text_of(message)[:500])


def spend(_: Any, work: int, built: int) -> bool:
    """Pay for a body that is about to run."""
    current.get().spend(work=work, built=built)
    return True
