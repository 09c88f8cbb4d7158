"""How much a chat template may do: counted work and counted memory, never time.

Templates come from strangers. Each step of a template and everything it builds is paid for before it happens, so that
a hostile one is stopped at the same place on every machine, early and with little memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

import msgspec
from jinja2.exceptions import TemplateError
from jinja2.runtime import Undefined

MAX_DEPTH: Final = 64
"""Nesting of values, and likewise of macro calls."""
MAX_INT_BITS: Final = 128
SCAN_CHARS: Final = 256
"""Characters looked through for one unit of work."""
LIST_ITEM: Final = 16
DICT_ITEM: Final = 64
"""What an item of a list or of a dict is taken to hold, in characters."""


class OverBudget(Exception):
    """The template wants to do or to build more than it may."""


class Refused(TemplateError):
    """The template called `raise_exception`: its own words about the messages."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """A value as it would be written out: shared parts count as often as they appear."""

    nodes: int
    chars: int
    depth: int


class Budget:
    """What one render may still do: `work` in template nodes executed, `built` in characters made."""

    def __init__(self, work: int, built: int, wall: Callable[[], float]) -> None:
        self.work = work
        self.built = built
        self.wall = wall
        self.calls = 0

    @classmethod
    def for_input(cls, size: Size, wall: Callable[[], float]) -> Budget:
        """Linear in what the template is given, so that long conversations fit and work that is squared in them not."""
        work = 500_000 + 2_000 * size.nodes + size.chars // 2
        return cls(work, 4_000_000 + 1_000 * size.nodes + 64 * size.chars, wall)

    def spend(self, work: int = 0, built: int = 0) -> None:
        """Pay before doing. Raises OverBudget."""
        self.work -= work
        self.built -= built
        if self.work < 0:
            raise OverBudget("the chat template does more work than it may")
        if self.built < 0:
            raise OverBudget("the chat template builds more text than it may")

    def scan(self, text: str) -> None:
        """Pay for looking through `text` once."""
        self.spend(work=1 + len(text) // SCAN_CHARS)

    def measure(self, value: Any) -> Size:
        """How large `value` is written out, paying for the walk. Raises OverBudget, and TypeError for no plain value.

        Lists that hold one another again and again are small in memory and vast written out, compared or hashed.
        """
        nodes = chars = deepest = 0
        stack = [(value, 0)]
        while stack:
            item, depth = stack.pop()
            nodes += 1
            deepest = max(deepest, depth)
            if depth > MAX_DEPTH:
                raise OverBudget(f"a value is nested more than {MAX_DEPTH} deep")
            if isinstance(item, str):
                self.scan(item)
                chars += len(item)
            elif isinstance(item, dict):
                self.spend(work=1 + 2 * len(item))
                stack.extend((part, depth + 1) for pair in item.items() for part in pair)
            elif isinstance(item, (list, tuple)):
                self.spend(work=1 + len(item))
                stack.extend((part, depth + 1) for part in item)
            elif item is None or isinstance(item, (bool, float, Undefined)):
                chars += 24
            elif isinstance(item, int):
                chars += 1 + item.bit_length() // 3
            else:
                raise TypeError(f"a {type(item).__name__} cannot be written or compared here")
        return Size(nodes=nodes, chars=chars, depth=deepest)


current: ContextVar[Budget] = ContextVar("foreserve_template_budget")
"""The budget of the render that runs now in this thread or task."""


def text_of(value: Any) -> str:
    """`str(value)`, paid for. Raises OverBudget, and TypeError for what is no plain value."""
    if type(value) is str:
        return value
    budget = current.get()
    size = budget.measure(value)
    if isinstance(value, (dict, list, tuple)):
        budget.spend(built=10 * size.chars + 8 * size.nodes)  # the longest escape in a repr has ten characters
    else:
        budget.spend(built=size.chars)
    return str(value)
