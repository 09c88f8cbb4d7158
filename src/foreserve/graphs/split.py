"""Which values are kept up to date and which are computed when asked: the program, cut at a layer.

Values up to the cut are maintained by the *update phase*, the others computed by the *inference phase* for the nodes of
a query: collaborative serving, after STAG (arXiv:2309.15875). The cut by layers is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from foreserve.graphs.program import Aggregate, Local, Program, Value


@dataclass(frozen=True)
class Stage:
    """One layer of the update phase: aggregates first, then by node type what is computed of them and kept.

    `locals` are in the order of their computation, `outputs` those of them that are kept, `leaves` what they read.
    """

    aggregates: tuple[Value, ...]
    locals: dict[str, tuple[Value, ...]]
    outputs: dict[str, tuple[Value, ...]]
    leaves: dict[str, tuple[Value, ...]]


@dataclass(frozen=True)
class Split:
    """`program` with all values of at most `level` layers maintained.

    `kept` are the values that have a table: those that a later layer reads, and the maintained aggregates themselves.
    """

    program: Program
    level: int
    stages: tuple[Stage, ...]
    kept: frozenset[int]
    passed_on: frozenset[int]
    """Those of the kept that something else kept is made of."""
    asked: tuple[Value, ...]
    """What the inference phase may have to compute, in order."""


def split(program: Program, level: int) -> Split:
    """Cut after `level` layers: 0 maintains nothing but what needs no neighbour, the program's depth everything."""
    values = program.values
    stage = _stages(program)
    readers: dict[int, list[Value]] = {value.id: [] for value in values}
    for value in values:
        for each in value.inputs:
            readers[each].append(value)
    outputs = set(program.outputs.values())
    kept = set()
    for value in values:
        if stage[value.id] > level:
            continue
        reads_later = any(
            isinstance(reader.op, Aggregate) or stage[reader.id] > stage[value.id] for reader in readers[value.id]
        )
        if not isinstance(value.op, Local) or reads_later or value.id in outputs:
            kept.add(value.id)
    stages = tuple(_stage(program, stage, kept, n) for n in range(level + 1))
    asked = tuple(value for value in values if stage[value.id] > level)
    read = {each for value in values if stage[value.id] <= level for each in value.inputs}
    return Split(program, level, stages, frozenset(kept), frozenset(kept & read), asked)


def _stage(program: Program, stage: list[int], kept: set[int], n: int) -> Stage:
    here = [value for value in program.values if stage[value.id] == n and isinstance(value.op, Local)]
    needed: set[int] = set()
    for value in reversed(here):
        if value.id in kept or value.id in needed:
            needed.add(value.id)
            needed.update(value.inputs)
    types = {value.type for value in here if value.id in kept}
    locals_ = {type_: tuple(v for v in here if v.type == type_ and v.id in needed) for type_ in sorted(types)}
    leaves = {}
    for type_, mine in locals_.items():
        own = {value.id for value in mine}
        leaves[type_] = tuple(program.values[i] for i in sorted({i for v in mine for i in v.inputs} - own))
    return Stage(
        aggregates=tuple(v for v in program.values if isinstance(v.op, Aggregate) and v.depth == n),
        locals=locals_,
        outputs={type_: tuple(v for v in mine if v.id in kept) for type_, mine in locals_.items()},
        leaves=leaves,
    )


def _stages(program: Program) -> list[int]:
    """The layer at which each value is computed: its depth, or later where that spares a table.

    What only later layers read, and is made of what is kept anyway, is computed there: the root term of GraphSAGE
    needs no table beside that of its input.
    """
    values = program.values
    readers: dict[int, list[Value]] = {value.id: [] for value in values}
    for value in values:
        for each in value.inputs:
            readers[each].append(value)
    sinks: list[bool] = []
    for value in values:
        sinks.append(
            isinstance(value.op, Local)
            and value.id not in program.outputs.values()
            and all(isinstance(reader.op, Local) for reader in readers[value.id])
            and all(sinks[i] or not isinstance(values[i].op, Local) or _read_by_edges(readers[i]) for i in value.inputs)
        )
    stage = [value.depth for value in values]
    for value in reversed(values):
        if sinks[value.id]:
            stage[value.id] = min(stage[reader.id] for reader in readers[value.id])
    return stage


def _read_by_edges(readers: list[Value]) -> bool:
    return any(isinstance(reader.op, Aggregate) for reader in readers)
