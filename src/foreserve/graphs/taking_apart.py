"""From a user's model to its program, and the proof that both compute the same."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from foreserve.errors import ConfigError
from foreserve.graphs.layers import apart, layers_of
from foreserve.graphs.program import Aggregate, Feature, Local, Program, Topology
from foreserve.graphs.recording import CannotTakeApart, EdgeToken, Example, Recorded, Recorder, example
from foreserve.graphs.schema import EDGE, NODE, Schema

_EDGE_WORDS = ("edge_index", "edge_weight", "edge_attr")


def take_apart(model: torch.nn.Module, schema: Schema, where: str = "the model") -> Program:
    """The program of a model, whose `forward` takes `x`, `edge_index` and, by these names, `edge_weight` and
    `edge_attr`; of typed nodes or edges, dictionaries of them by type. Puts the model into evaluation.

    Raises CannotTakeApart, which names the layer or the function, and ConfigError where model and schema do not fit.
    """
    model.eval()
    one = next(iter(model.parameters()), torch.zeros(()))
    graph = example(schema, 0, one.dtype, one.device)
    recorder = Recorder(schema, graph)
    features = recorder.features()
    with torch.no_grad(), _replaced(model, recorder):
        arguments = call_words(model, schema, features, _tokens(recorder, graph), where)
        try:
            made = model(**arguments)
        except CannotTakeApart as error:
            raise CannotTakeApart(f"{where}: {error}") from None
        except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise ConfigError(f"{where}: its forward fails on a small graph of this schema: {error}") from error
    program = recorder.program(_outputs(made, schema, where))
    if not program.aggregates():
        raise ConfigError(f"{where}: it has no layer that passes messages; serve it as a function")
    prove(model, program, schema, where)
    return program


def call_words(
    model: torch.nn.Module,
    schema: Schema,
    features: Mapping[str, Any],
    edges: Mapping[str, Mapping[Any, Any]],
    where: str,
) -> dict[str, Any]:
    """The keyword arguments of a call of the model. Raises ConfigError for a parameter that nobody can give."""
    given: dict[str, Any] = {"x": features, **edges}
    if schema.is_homogeneous:
        given = {"x": features[NODE], **{name: by_type.get(EDGE) for name, by_type in edges.items()}}
    words: dict[str, Any] = {}
    for name, parameter in inspect.signature(model.forward).parameters.items():
        short = name.removesuffix("_dict")
        if short in given and (short in ("x", "edge_index") or (given[short] is not None and len(given[short]))):
            words[name] = given[short]
        elif parameter.default is inspect.Parameter.empty and parameter.kind not in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        ):
            raise ConfigError(
                f"{where}: its forward takes {name!r}, which a graph of this schema does not have; valid: x, "
                + ", ".join(_EDGE_WORDS)
            )
    return words


def given_edges(
    schema: Schema, indices: Mapping[Any, Tensor], weights: Mapping[Any, Tensor], attributes: Mapping[Any, Tensor]
) -> dict[str, dict[Any, Tensor]]:
    """What edges carry, by the names of a model's parameters and by type, as far as the schema has it."""
    return {
        "edge_index": dict(indices),
        "edge_weight": {key: weights[key] for key, edge in schema.edges.items() if edge.weighted},
        "edge_attr": {key: attributes[key] for key, edge in schema.edges.items() if edge.attributes},
    }


def _tokens(recorder: Recorder, graph: Example) -> dict[str, dict[Any, EdgeToken]]:
    indices = {key: torch.stack(edges) for key, edges in graph.edges.items()}
    given = given_edges(recorder.schema, indices, graph.weights, graph.attributes)
    return {what: {key: recorder.token(key, what, rows) for key, rows in by.items()} for what, by in given.items()}


@contextmanager
def _replaced(model: torch.nn.Module, recorder: Recorder) -> Iterator[None]:
    """While this lasts each layer that passes messages writes down what it is made of."""
    layers = layers_of(model)
    try:
        for name, layer in layers:
            layer.__dict__["forward"] = _forward(name, layer, recorder)
        yield
    finally:
        for _, layer in layers:
            layer.__dict__.pop("forward", None)


def _forward(name: str, layer: Any, recorder: Recorder) -> Any:
    # A layer that cannot be taken apart is refused when it is called: one that is never called does no harm.
    return lambda *args, **kwargs: apart(layer, name)(recorder, *args, **kwargs)


def _outputs(made: Any, schema: Schema, where: str) -> dict[str, Recorded]:
    rows = made if isinstance(made, dict) else {None: made}
    for each in rows.values():
        if not isinstance(each, Recorded):
            raise CannotTakeApart(
                f"{where}: it returns {type(each).__name__}; valid: rows of nodes, or a dictionary of such"
            )
    return {each.value.type: each for each in rows.values()}


def prove(model: torch.nn.Module, program: Program, schema: Schema, where: str) -> None:
    """Compare both on two graphs of other sizes than the recorded one. Raises CannotTakeApart where they differ."""
    one = next(iter(model.parameters()), torch.zeros(()))
    for seed in (1, 2):
        graph = example(schema, seed, one.dtype, one.device)
        indices = {key: torch.stack(edges) for key, edges in graph.edges.items()}
        edges = given_edges(schema, indices, graph.weights, graph.attributes)
        with torch.no_grad():
            theirs = model(**call_words(model, schema, graph.features, edges, where))
            ours = run(program, graph)
        by_type = theirs if isinstance(theirs, dict) else {next(iter(program.outputs)): theirs}
        for name, rows in by_type.items():
            close = torch.allclose(rows, ours[name], rtol=1e-4, atol=1e-5) if rows.shape == ours[name].shape else False
            if not close:
                raise CannotTakeApart(
                    f"{where}: taken apart it computes something else for {name!r} nodes; what its forward does "
                    "depends on the graph in a way that was not seen"
                )


def run(program: Program, graph: Example) -> dict[str, Tensor]:
    """All outputs of a small graph, computed by the program in full."""
    recorder = Recorder(Schema({}, {}), graph)
    rows: dict[int, Tensor] = {}
    for value in program.values:
        match value.op:
            case Feature():
                rows[value.id] = graph.features[value.type]
            case Topology(key=key, what=what, loops=loops, fill=fill):
                rows[value.id] = recorder.topology(key, what, loops, fill).as_subclass(Tensor)
            case Aggregate(key=key, reduce=reduce, sources=sources, targets=targets):
                edges = recorder.gathered(key, reduce.loops)
                rows[value.id] = reduce(edges, [rows[each] for each in sources], [rows[each] for each in targets])
            case Local() as local:
                rows[value.id] = local(rows)
    return {name: rows[each] for name, each in program.outputs.items()}
