from hypothesis import given
from hypothesis import strategies as st

from foreserve.core import Work
from foreserve.dispatch.batches import Batch, Batches, Member
from foreserve.foresight.wma import Shape, batch_waste, longest, memory_tokens

shapes = st.builds(Shape, st.integers(0, 300), st.integers(1, 300))


def member(name: str, shape: Shape, most: int | None = None, arrival: float = 0.0) -> Member:
    work = Work(id=name, payload=None, cost={"slots": 1.0}, arrival=arrival)
    return Member(work, shape, shape.output if most is None else most)


def members(found: list[Shape]) -> list[Member]:
    return [member(f"r{number}", shape) for number, shape in enumerate(found)]


@given(st.lists(shapes, min_size=1, max_size=12), shapes)
def test_a_batch_knows_its_waste_and_memory(found: list[Shape], more: Shape):
    batch = Batch(members(found))
    assert batch.longest == longest(found)
    assert batch.waste == batch_waste(found)
    assert batch.waste_with(more) == batch_waste([*found, more])
    assert batch.memory_with(member("more", more)) == memory_tokens(len(found) + 1, longest([*found, more]))
    batch.add(member("more", more))
    assert batch.waste == batch_waste([*found, more])
    batch.remove(["more"])
    assert (batch.waste, batch.memory) == (batch_waste(found), memory_tokens(len(found), longest(found)))


@given(st.lists(shapes, min_size=1, max_size=40), st.sampled_from([0.0, 500.0, 20_000.0, float("inf")]))
def test_no_batch_ever_outgrows_its_bounds(found: list[Shape], phi: float):
    batches = Batches(phi)
    for each in members(found):
        batches.place(each, rows=6, tokens=1500)
        for batch in batches:
            assert len(batch.members) <= 6
            assert batch.memory <= 1500 or len(batch.members) == 1
            assert batch.waste < phi or len(batch.members) == 1
    assert sum(len(batch.members) for batch in batches) == len(found)


@given(st.lists(shapes, min_size=1, max_size=30))
def test_with_phi_0_each_is_alone(found: list[Shape]):
    batches = Batches(0.0)
    for each in members(found):
        batches.place(each, rows=64, tokens=1e9)
    assert len(batches) == len(found)


@given(st.lists(shapes, min_size=1, max_size=30))
def test_without_a_bound_on_waste_memory_alone_bounds(found: list[Shape]):
    batches = Batches(float("inf"))
    for each in members(found):
        batches.place(each, rows=64, tokens=1e9)
    assert len(batches) == 1


def test_it_joins_the_batch_that_wastes_least_of_those_that_it_fits():
    batches = Batches(50_000.0)
    long = batches.place(member("long", Shape(200, 200)), 8, 10_000)
    short = batches.place(member("short", Shape(10, 10)), 8, 10_000)
    assert long is not short or len(batches) == 1
    assert batches.place(member("like long", Shape(190, 200)), 8, 10_000) is long
    assert batches.place(member("like short", Shape(11, 10)), 8, 10_000) is short


def test_who_is_taken_or_closed_is_never_joined():
    batches = Batches(float("inf"))
    batch = batches.place(member("a", Shape(5, 5)), 8, 1e9)
    batches.take(batch)
    other = batches.place(member("b", Shape(5, 5)), 8, 1e9)
    assert other is not batch
    (half,) = other.split()
    batches.take(other)
    batches.put(half)
    assert batches.place(member("c", Shape(5, 5)), 8, 1e9) is not half
    assert len(half.members) == 1


def test_a_split_is_even_and_keeps_every_one():
    batch = Batch(members([Shape(10 * i, 5 + i) for i in range(7)]))
    halves = batch.split()
    assert [len(half.members) for half in halves] == [4, 3]
    assert {name for half in halves for name in half.members} == set(batch.members)


@given(st.lists(shapes, min_size=2, max_size=20), st.data())
def test_who_leaves_leaves_nothing_behind(found: list[Shape], data: st.DataObject):
    batches = Batches(20_000.0)
    every = members(found)
    for each in every:
        batches.place(each, rows=8, tokens=2000)
    gone = data.draw(st.sets(st.sampled_from([each.work.id for each in every])))
    for name in sorted(gone):
        batches.drop(name)
        batches.drop(name)
    left = {each.work.id: each.shape for each in every if each.work.id not in gone}
    assert {name for batch in batches for name in batch.members} == set(left)
    for batch in batches:
        assert batch.longest == longest([left[name] for name in batch.members])
    for batch in list(batches):
        batches.take(batch)
    assert not batches._open
    assert not batches._cells
    assert not batches._of


def test_joining_compares_a_bounded_number_however_many_wait():
    batches = Batches(1.0)  # equals alone join, so that nearly each is a batch of its own
    for number in range(3000):
        batches.place(member(f"r{number}", Shape(number % 997, 1 + number % 991)), 64, 1e9)
    assert len(batches) > 2900
    assert sum(1 for _ in batches._near(Shape(500, 500))) <= 9 * 4
    assert sum(1 for _ in batches._newest()) <= 16
