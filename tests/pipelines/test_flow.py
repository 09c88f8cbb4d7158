"""What is wrong when a pipeline is written is told then, with the shape that is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from foreserve.errors import ConfigError
from foreserve.pipelines.flow import Flow, join, show
from foreserve.pipelines.pipeline import pipeline
from foreserve.pipelines.splitting import lines, words
from foreserve.pipelines.stage import stage
from foreserve.pipelines.stream import Stream
from foreserve.pipelines.text import Text
from tests.pipelines.stages import count, double, plus, shout, total, write


def wrong(code: Callable[..., Any]) -> str:
    with pytest.raises(ConfigError) as error:
        pipeline(code)
    return str(error.value)


def test_one_where_many_come():
    def p(n: int) -> Any:
        return double(count(n))

    said = wrong(p)
    assert "`x` takes int, and 'count' is Stream[int]" in said
    assert "call it for each of them: `count.map(double)`" in said


def test_many_where_one_comes():
    def p(n: int) -> Any:
        return total(double(n))

    assert "it reads many, and there is one; take int in place of Stream[int]" in wrong(p)


def test_a_level_too_many():
    def p(n: int) -> Any:
        return total(count(n).map(count))

    assert "call it for each of them: `count.map(total)`, or take a level off: `count.flatten()`" in wrong(p)


def test_another_type():
    def p(n: int) -> Any:
        return shout(double(n))

    assert "`text` takes str, and 'double' is int" in wrong(p)


def test_what_is_made_for_each_child_does_not_leave_the_body():
    def p(n: int) -> Any:
        kept: list[Any] = []

        def body(x: Any) -> Any:
            kept.append(double(x))
            return kept[0]

        count(n).map(body)
        return plus(kept[0], n)

    said = wrong(p)
    assert "there is one 'double' (int) for each of 'count', and it is used outside of the map over them" in said
    assert "a Stream[int]: `doubles = count.map(body)`" in said


def test_children_of_two_maps_are_not_joined_by_chance():
    def p(n: int) -> Any:
        kept: list[Any] = []

        def first(x: Any) -> Any:
            kept.append(double(x))
            return kept[0]

        xs = count(n)
        xs.map(first)
        return xs.map(lambda x: plus(x, kept[0]))

    said = wrong(p)
    assert "they have no child in common" in said
    assert "join(first(each), second(each))" in said


def test_map_is_for_many_and_flatten_for_streams_of_streams():
    def maps(n: int) -> Any:
        return double(n).map(double)

    def flattens(n: int) -> Any:
        return count(n).flatten()

    def splits(n: int) -> Any:
        return count(n).split(lines)

    def splits_each(text: str) -> Any:
        return write(text).split(lines).split(words)

    assert "`map` is for many, and 'double' is one int; call it: `double(double)`" in wrong(maps)
    assert "'count' is Stream[int]; it is flat" in wrong(flattens)
    assert "`split` is for text, and 'count' is Stream[int]" in wrong(splits)
    assert "cut each of them: `lines.map(lambda each: each.split(words))`" in wrong(splits_each)


def test_order_of_what_has_none():
    def p(n: int) -> Any:
        return count(n).map(count).flatten().map(double, ordered=True)

    assert "has an order only with `flatten(ordered=True)`" in wrong(p)


def test_values_are_looked_at_in_stages():
    def decides(n: int) -> Any:
        return double(n) if count(n) else n

    def loops(n: int) -> Any:
        return [double(x) for x in count(n)]

    def computes(n: int) -> Any:
        return count(n).map(lambda x: 5)

    assert "has no value while the pipeline is written; decide in a stage" in wrong(decides)
    assert "use `count.map(…)`" in wrong(loops)
    assert "the body returned int; it must return what a stage or an operation gave it" in wrong(computes)


def test_arguments_are_bound_by_name():
    assert "'y' is missing; it takes (x: int, y: int)" in wrong(lambda n: plus(n))
    assert "'z' is none of its parameters" in wrong(lambda n: plus(n, z=n))
    assert "'x' is given twice" in wrong(lambda n: plus(n, x=n))
    assert "3 arguments were given" in wrong(lambda n: plus(n, n, n))


def test_a_pipeline_is_a_plain_function_with_parameters():
    async def waits(n: int) -> Any:
        return double(n)

    assert "is an `async def`" in wrong(waits)
    assert "takes nothing; give it a parameter" in wrong(lambda: double(1))
    assert "the body returned NoneType" in wrong(lambda n: None)


def test_flows_end_with_their_pipeline():
    kept: list[Any] = []

    @pipeline
    def first(n: int) -> Any:
        kept.append(double(n))
        return kept[0]

    with pytest.raises(ConfigError, match="pipeline 'first' is made already"):
        double(kept[0])
    assert "belongs to pipeline 'first', not" in wrong(lambda n: plus(n, kept[0]))


def test_drop_needs_something_to_be_dropped_from():
    @stage(failed="drop")
    async def may_fail(x: int) -> int:
        return x

    assert "drops the child of a map that encloses it, and none does here" in wrong(lambda n: may_fail(n))


def test_what_is_shown_has_a_name_of_its_own():
    def p(n: int) -> Any:
        show("a", double(n))
        return {"a": double(n)}

    assert "'a' names an output, and something that is shown" in wrong(p)
    assert "another flow is shown by this name" in wrong(lambda n: (show("a", double(n)), show("a", double(n))))


def test_join_takes_flows():
    assert "join(...) takes flows" in wrong(lambda n: join(n, 5))  # type: ignore[arg-type]
    assert "join(...) takes flows" in wrong(lambda n: join(n, m=n))


def test_levels_and_types_are_inferred():
    kinds: dict[str, Any] = {}

    @pipeline
    def p(question: Flow[str]) -> Any:
        answer = write(question)
        kinds["claims"] = (claims := answer.split(lines)).kind
        nested = claims.map(lambda claim: claim.split(words))
        kinds["nested"] = nested.kind
        kinds["flat"] = nested.flatten().kind
        kinds["gathered"] = nested.gather().kind
        kinds["pair"] = (pair := join(answer, nested)).kind
        kinds["side"] = pair[1].kind
        return answer

    assert kinds == {
        "claims": Stream[Text],
        "nested": Stream[Stream[Text]],
        "flat": Stream[Text],
        "gathered": list[list[str]],
        "pair": tuple[str, list[list[str]]],
        "side": list[list[str]],
    }
    assert p.plan.inputs["question"].kind is str
