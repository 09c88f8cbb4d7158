"""The methods, filters and tests of chat templates. Nothing outside these tables can be called by one.

What pads to a width of the template's choice (`center`, `ljust`, `zfill`) or reaches into objects (`attr`) is not
here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from jinja2 import pass_context
from jinja2.filters import FILTERS as PLAIN_FILTERS
from jinja2.runtime import Context, Undefined
from jinja2.tests import TESTS as PLAIN_TESTS

from foreserve.models import template_values as values
from foreserve.models.template_budget import DICT_ITEM, LIST_ITEM, SCAN_CHARS, OverBudget, current, text_of


def _search_work(name: str, text: str, args: tuple[Any, ...]) -> int:
    """Forward searches are linear; `strip` and those from the right may look at every pair of characters."""
    pairs = name.endswith("strip") or name.startswith("r")
    wanted = max((len(arg) for arg in args if isinstance(arg, str)), default=1) if pairs else 1
    return 1 + len(text) * wanted // SCAN_CHARS


def _split(name: str) -> Callable[..., list[str]]:
    def split(text: str, *args: Any, **kwargs: Any) -> list[str]:
        budget = current.get()
        budget.spend(work=_search_work(name, text, (*args, *kwargs.values())), built=4 * len(text))
        parts: list[str] = getattr(text, name)(*args, **kwargs)
        budget.spend(built=DICT_ITEM * len(parts))
        return parts

    return split


def _text(name: str, growth: int) -> Callable[..., Any]:
    """A string method whose result has at most `growth` times the string's length."""

    def method(text: str, *args: Any) -> Any:
        budget = current.get()
        budget.spend(work=_search_work(name, text, args), built=growth * len(text))
        return getattr(text, name)(*args)

    return method


def _items(content: Any) -> list[Any]:
    current.get().spend(work=1, built=DICT_ITEM * len(content))
    return list(content)


def _place(name: str) -> Callable[..., Any]:
    def find(items: Any, wanted: Any, *args: Any) -> Any:
        values.compare(wanted, "in", items)
        return getattr(items, name)(wanted, *args)

    return find


_LIST_METHODS: Final = {name: _place(name) for name in ("index", "count")}

METHODS: Final[dict[type, dict[str, Callable[..., Any]]]] = {
    str: {
        **{name: _text(name, 3) for name in ("upper", "lower", "title", "capitalize", "swapcase", "casefold")},
        **{name: _text(name, 1) for name in ("strip", "lstrip", "rstrip", "removeprefix", "removesuffix")},
        **{name: _text(name, 2) for name in ("partition", "rpartition")},
        **{name: _text(name, 0) for name in ("startswith", "endswith", "find", "rfind", "index", "rindex", "count")},
        **{name: _text(name, 0) for name in ("isdigit", "isdecimal", "isnumeric", "isalpha", "isalnum", "isspace")},
        **{name: _text(name, 0) for name in ("isupper", "islower", "istitle")},
        **{name: _split(name) for name in ("split", "rsplit", "splitlines")},
        "replace": values.replaced,
        "join": values.joined,
        "format": lambda text, *args, **kwargs: values.braces(text, args, kwargs),
    },
    dict: {
        "items": lambda value: _items(value.items()),
        "keys": lambda value: _items(value.keys()),
        "values": lambda value: _items(value.values()),
        "get": lambda value, name, default=None: value.get(values.key(name), default),
    },
    list: _LIST_METHODS,
    tuple: _LIST_METHODS,
}
"""The methods that can be called, by the type they belong to; the object comes first."""


def _own(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of ours. That it takes the context also keeps Jinja from running it while it compiles."""

    @pass_context
    def run(context: Context, *args: Any, **kwargs: Any) -> Any:
        current.get().spend(work=1)
        return function(*args, **kwargs)

    return run


def _worded(name: str) -> Callable[..., Any]:
    """Jinja's own filter of a text, which is at most three times as long after it."""

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = text_of(value)
        if any(len(arg) > 64 for arg in (*args, *kwargs.values()) if isinstance(arg, str)):
            raise OverBudget(f"{name} is given more than 64 characters")
        current.get().spend(work=1 + len(text) // 4, built=3 * len(text) + 64)
        first = (context.environment,) if name == "truncate" else ()
        return PLAIN_FILTERS[name](*first, text, *args, **kwargs)

    return run


def _plain(name: str, passing: str = "", deep: bool = False, glance: bool = False) -> Callable[..., Any]:
    """Jinja's own filter, its value paid for: walked to its end if `deep`, touched only if `glance`.

    Generators become lists.
    """
    function = PLAIN_FILTERS[name]

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = current.get()
        budget.spend(work=2)
        if deep:
            budget.measure(value)
        if glance and isinstance(value, (str, *values.CONTAINERS)):
            pass
        elif isinstance(value, str):
            budget.scan(value)
            budget.spend(built=len(value))
        elif isinstance(value, values.CONTAINERS):
            budget.spend(work=len(value), built=LIST_ITEM * len(value))
        elif not (value is None or isinstance(value, (int, float, Undefined))):
            raise TypeError(f"{name} does not take a {type(value).__name__}")
        first = {"context": (context,), "environment": (context.environment,)}.get(passing, ())
        result = function(*first, value, *args, **kwargs)
        return values.number(list(result) if isinstance(result, Iterator) else result)

    return run


def _rounded(value: Any, precision: Any = 0, method: str = "common") -> Any:
    if not isinstance(value, (int, float)) or not -20 <= int(precision) <= 20:
        raise ValueError("round takes a number and at most 20 digits")
    return PLAIN_FILTERS["round"](values.number(value), int(precision), method)


def _whole(value: Any, default: Any = 0, base: Any = 10) -> Any:
    if isinstance(value, values.CONTAINERS):
        return default
    return values.number(PLAIN_FILTERS["int"](value, default, base))


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "_each": _own(values.each),
    "_concat": _own(values.concat),
    "_cut": _own(values.cut),
    "_compare": _own(values.compare_all),
    "_key": _own(values.key),
    "_spend": _own(values.spend),
    "_emit": _own(lambda value: values.concat([value])),
    "string": _own(text_of),
    "safe": _own(text_of),
    "join": _own(lambda items, d="", attribute=None: values.joined(text_of(d), _attributes(items, attribute))),
    "replace": _own(values.replaced),
    "format": _own(lambda pattern, *args, **kwargs: values.percent(text_of(pattern), kwargs or args)),
    "tojson": _own(values.to_json),
    "indent": _own(values.indented),
    "sum": _own(values.total),
    "round": _own(_rounded),
    "int": _own(_whole),
    "list": _own(values.each),
    "default": _own(PLAIN_FILTERS["default"]),
    "d": _own(PLAIN_FILTERS["default"]),
    **{name: _plain(name, glance=True) for name in ("length", "count")},
    **{name: _plain(name) for name in ("reverse", "items", "float", "abs")},
    **{name: _worded(name) for name in ("upper", "lower", "capitalize", "title", "trim", "wordcount", "truncate")},
    **{name: _plain(name, "environment", glance=True) for name in ("first", "last")},
    **{name: _plain(name, "context") for name in ("map", "select", "reject", "selectattr", "rejectattr")},
    **{name: _plain(name, "environment", deep=True) for name in ("sort", "unique", "min", "max")},
    "dictsort": _plain("dictsort", deep=True),
}


def _attributes(items: Any, attribute: Any) -> Any:
    if attribute is None:
        return items
    return [item.get(attribute, "") if isinstance(item, dict) else "" for item in values.each(items)]


def _compared(op: str) -> Callable[..., bool]:
    return lambda left, right: values.compare(left, op, right)


_JINJA_TESTS: Final[dict[str, Any]] = dict(PLAIN_TESTS)

TESTS: Final[dict[str, Callable[..., Any]]] = {
    **{
        name: _JINJA_TESTS[name]
        for name in (
            *("defined", "undefined", "none", "boolean", "true", "false", "integer", "float", "number", "string"),
            *("mapping", "iterable", "sequence", "odd", "even", "divisibleby", "sameas"),
        )
    },
    **{name: _compared("eq") for name in ("eq", "equalto", "==")},
    **{name: _compared("ne") for name in ("ne", "!=")},
    **{name: _compared("lt") for name in ("lt", "lessthan", "<")},
    **{name: _compared("gt") for name in ("gt", "greaterthan", ">")},
    **{name: _compared("lteq") for name in ("le", "<=")},
    **{name: _compared("gteq") for name in ("ge", ">=")},
    "in": _compared("in"),
}
