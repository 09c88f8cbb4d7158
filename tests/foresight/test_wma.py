from hypothesis import given
from hypothesis import strategies as st

from foreserve.foresight.wma import (
    Shape,
    batch_waste,
    longest,
    memory_tokens,
    waste,
    waste_padding,
    waste_waiting,
)

shapes = st.builds(Shape, st.integers(0, 2000), st.integers(1, 2000))
some = st.lists(shapes, min_size=1, max_size=12)

THREE = [Shape(100, 50), Shape(120, 60), Shape(40, 10)]


def test_the_three_requests_of_the_specification():
    batch = longest(THREE)
    assert [(waste_padding(s, batch), waste_waiting(s, batch)) for s in THREE] == [(1000, 1745), (0, 0), (800, 7725)]
    assert [waste(shape, batch) for shape in THREE] == [2745, 0, 8525]
    assert batch_waste(THREE) == 8525


def test_a_short_request_in_a_long_batch():
    short, batch = Shape(40, 10), Shape(1000, 400)
    assert waste_padding(short, batch) == 9_600
    assert waste_waiting(short, batch) == 469_755
    assert waste(short, batch) == 479_355


def test_memory_is_padded_to_the_longest_of_both():
    assert memory_tokens(3, longest(THREE)) == 3 * (120 + 60)


@given(shapes, shapes)
def test_the_closed_form_is_the_sum_over_the_steps(a: Shape, b: Shape):
    batch = longest([a, b])
    assert waste_waiting(a, batch) == sum(g + batch.input for g in range(a.output, batch.output))


@given(some)
def test_no_waste_only_among_equals(batch: list[Shape]):
    assert (batch_waste(batch) == 0) == (len(set(batch)) == 1)


@given(some, shapes)
def test_one_more_never_wastes_less(batch: list[Shape], more: Shape):
    assert batch_waste([*batch, more]) >= batch_waste(batch)


@given(some, shapes, st.integers(0, 500), st.integers(0, 500))
def test_waste_falls_as_a_request_grows(batch: list[Shape], request: Shape, longer: int, further: int):
    grown = Shape(request.input + longer, request.output + further)
    whole = longest([*batch, grown])
    assert waste(grown, whole) <= waste(request, whole)
