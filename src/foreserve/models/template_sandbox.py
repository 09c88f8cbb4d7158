"""Jinja for templates of strangers: what a chat template may say, rewritten so that every step of it is paid for.

The template is parsed, checked and rewritten before it is compiled: loops and macro bodies pay for themselves,
`~`, comparisons, slices and outputs go through `template_values`. Attributes and calls are those of its tables alone.
"""

from __future__ import annotations

from typing import Any, Final

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from foreserve.models import template_values as values
from foreserve.models.template_budget import LIST_ITEM, MAX_DEPTH, OverBudget, current
from foreserve.models.template_tables import FILTERS, METHODS, TESTS

MAX_TEMPLATE_CHARS: Final = 128 * 1024
MAX_NODES: Final = 20_000
MAX_NODE_DEPTH: Final = 120
MACRO_CALL: Final = 20
"""Work that calling a macro takes beside its body."""

_FORBIDDEN: Final = (
    *(nodes.Import, nodes.FromImport, nodes.Include, nodes.Extends, nodes.Block),
    *(nodes.EvalContextModifier, nodes.OverlayScope),
)
_LOOP_FACTS: Final = frozenset(
    ["index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0", "previtem", "nextitem"]
)
_LOOP_METHODS: Final = frozenset(["cycle", "changed"])


class _Generation(Extension):
    """`{% generation %}` marks what an assistant says, for training; it says nothing of its own."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox. Rendering needs a budget in `template_budget.current`."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing of a template runs before it has a budget
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        self.filters = dict(FILTERS)
        self.tests = dict(TESTS)
        self.globals = {
            "range": _range,
            "namespace": _namespace,
            "dict": _dict,
            "raise_exception": values.refuse,
            "strftime_now": values.now_as,
        }
        self._functions = tuple(self.globals.values())

    def compiled(self, source: str) -> Any:
        """The template, checked, rewritten and compiled. Raises OverBudget, and what Jinja raises for bad syntax."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise OverBudget(f"the template has {len(source)} characters; at most {MAX_TEMPLATE_CHARS}")
        tree = self.parse(source)
        _check(tree)
        return self.from_string(_Rewriter().visit(tree))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return values.binary(operator, self.binop_table[operator], left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        current.get().spend(work=1)
        if attribute.startswith("_"):
            raise SecurityError(f"the attribute {attribute[:40]!r} is not for templates")
        if attribute in _methods(obj):
            return _Method(obj, attribute)
        if isinstance(obj, dict):
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if isinstance(obj, (Namespace, Undefined)):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                return self.undefined(obj=obj, name=attribute)
        if isinstance(obj, LoopContext) and attribute in _LOOP_FACTS | _LOOP_METHODS:
            return getattr(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        current.get().spend(work=1)
        values.key(argument)  # before anything hashes it, or writes it into an error
        if isinstance(obj, (dict, list, tuple, str)):
            try:
                return obj[argument]
            except (TypeError, LookupError):
                pass
        return self.getattr(obj, argument) if isinstance(argument, str) else self.undefined(obj=obj, name=argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = current.get()
        budget.spend(work=1 + len(args) + len(kwargs))
        if isinstance(__obj, Macro):
            budget.spend(work=MACRO_CALL)
            if budget.calls >= MAX_DEPTH:
                raise OverBudget(f"macros call one another more than {MAX_DEPTH} deep")
            budget.calls += 1
            try:
                return __context.call(__obj, *args, **kwargs)
            finally:
                budget.calls -= 1
        for scope in ("_loop_vars", "_block_vars"):  # Jinja's own, for functions that take the context
            kwargs.pop(scope, None)
        if isinstance(__obj, _Method):
            return __obj(*args, **kwargs)
        if any(__obj is function for function in __self._functions):
            return __obj(*args, **kwargs)
        loop = getattr(__obj, "__self__", None)
        if isinstance(loop, LoopContext) and __obj.__name__ in _LOOP_METHODS:
            for arg in args:
                budget.measure(arg)
            return __obj(*args)
        if isinstance(__obj, Undefined):
            return __obj()  # raises what names it
        raise SecurityError(f"a {type(__obj).__name__} cannot be called by a template")


class _Method:
    """A method of a plain value, as `template_values` allows it."""

    def __init__(self, owner: Any, name: str) -> None:
        self._owner = owner
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _methods(self._owner)[self._name](self._owner, *args, **kwargs)


def _methods(value: Any) -> dict[str, Any]:
    return next((table for kind, table in METHODS.items() if isinstance(value, kind)), {})


def _range(*bounds: int) -> list[int]:
    numbers = range(*bounds)
    current.get().spend(work=1 + len(numbers) // 16, built=LIST_ITEM * len(numbers))
    return list(numbers)


def _namespace(*args: Any, **kwargs: Any) -> Namespace:
    return Namespace(_dict(*args, **kwargs))


def _dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
    if any(not isinstance(arg, dict) for arg in args):
        raise TypeError("dict and namespace take names with values")
    current.get().spend(work=1 + sum(map(len, args)))
    return dict(*args, **kwargs)


def _check(tree: nodes.Template) -> None:
    """Refuse what is too large or reaches outside the template."""
    stack: list[tuple[nodes.Node, int]] = [(tree, 0)]
    count = 0
    while stack:
        node, depth = stack.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_NODE_DEPTH:
            raise OverBudget(
                f"the template has more than {MAX_NODES} parts or nests them more than {MAX_NODE_DEPTH} deep"
            )
        if isinstance(node, _FORBIDDEN) or (isinstance(node, nodes.For) and node.recursive):
            what = "recursive for" if isinstance(node, nodes.For) else type(node).__name__.lower()
            raise TemplateSyntaxError(f"{what} is not supported in a chat template", node.lineno)
        if isinstance(node, nodes.Name) and node.name in ("self", "super"):
            raise TemplateSyntaxError(f"{node.name} is not supported in a chat template", node.lineno)
        if isinstance(node, nodes.Filter) and node.name.startswith("_"):
            raise TemplateSyntaxError(f"there is no filter {node.name}", node.lineno)
        stack.extend((child, depth + 1) for child in node.iter_child_nodes())


class _Rewriter(NodeTransformer):
    """Puts the payments in. Every change keeps what the template means."""

    def visit_Template(self, node: nodes.Template) -> nodes.Node:  # noqa: N802
        return self._paying(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._paying(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._paying(node)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.test is not None:
            pay = _payment([node.test], node.lineno)
            self._paying(node)
            node.test = nodes.And(pay, node.test, lineno=node.lineno)
        else:
            self._paying(node)
        node.iter = _call("_each", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("_concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        steps = [(nodes.Const(operand.op, lineno=node.lineno), operand.expr) for operand in node.ops]
        return _call("_compare", node.expr, *(part for step in steps for part in step))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _call("_cut", node.node, *(bound or nodes.Const(None, lineno=node.lineno) for bound in bounds))

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.key = _call("_key", node.key)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [part if isinstance(part, nodes.TemplateData) else _call("_emit", part) for part in node.nodes]
        return node

    def _paying(self, node: Any) -> nodes.Node:
        """`node` with a body that pays, each time it runs, for every part it may run and every text it may write."""
        pay = nodes.ExprStmt(_payment(node.body, node.lineno), lineno=node.lineno)
        self.generic_visit(node)
        node.body.insert(0, pay)
        return node  # type: ignore[no-any-return]


def _payment(parts: list[Any], lineno: int) -> nodes.Expr:
    count = chars = 0
    stack = list(parts)
    while stack:
        node = stack.pop()
        count += 1
        if isinstance(node, nodes.TemplateData):
            chars += len(node.data)
        stack.extend(node.iter_child_nodes())
    return _call("_spend", nodes.Const(None, lineno=lineno), *(nodes.Const(n, lineno=lineno) for n in (count, chars)))


def _call(name: str, value: Any, *args: Any) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)
