from hypothesis import given
from hypothesis import strategies as st

from foreserve.dispatch.tenants import OTHERS, Tenants


def test_least_served_come_first_and_those_within_the_burst_are_told_apart():
    tenants = Tenants({}, lines=2)
    for name in ("a", "b", "c"):
        tenants.join(tenants.account(name), 0)
    tenants.charge("a", 100)
    tenants.charge("b", 10)
    assert tenants.front(0, 10, 8) == (["c", "b"], ["a"])
    assert tenants.front(0, 10, 2) == (["c", "b"], [])
    assert tenants.front(1, 10, 8) == ([], [])
    tenants.leave("c", 0)
    assert tenants.front(0, 10, 8) == (["b"], ["a"])


def test_a_weight_makes_tokens_count_less():
    tenants = Tenants({"paid": 4.0}, lines=1)
    for name in ("paid", "free"):
        tenants.join(tenants.account(name), 0)
    for name in ("paid", "free"):
        tenants.charge(name, 100)
    assert (tenants.tokens("paid"), tenants.tokens("free")) == (25.0, 100.0)


def test_being_away_saves_nothing_up():
    tenants = Tenants({}, lines=1)
    tenants.join(tenants.account("busy"), 0)
    tenants.join(tenants.account("away"), 0)
    tenants.leave("away", 0)
    tenants.charge("busy", 5000)
    tenants.join(tenants.account("away"), 0)
    tenants.join(tenants.account("new"), 0)
    assert tenants.tokens("away") == tenants.tokens("new") == tenants.tokens("busy") == 5000


def test_the_table_is_bounded():
    tenants = Tenants({}, lines=1, most=16)
    for number in range(16):
        tenants.join(tenants.account(f"t{number}"), 0)
    assert tenants.account("one more") == OTHERS
    tenants.join(OTHERS, 0)
    assert tenants.account("another") == OTHERS
    tenants.leave("t3", 0)
    assert tenants.account("now there is room") == "now there is room"
    tenants.charge("t3", 5)  # closed: nothing to count on


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2), st.sampled_from(["join", "leave", "charge"]))),
    st.floats(-50, 500),
)
def test_each_line_is_sorted_and_holds_who_waits_there(steps: list[tuple[str, int, str]], tokens: float):
    tenants = Tenants({"b": 2.0}, lines=3)
    waiting: dict[tuple[int, str], int] = {}
    for name, line, what in steps:
        tenants.account(name)
        key = (line, name)
        if what == "join":
            tenants.join(name, line)
            waiting[key] = waiting.get(key, 0) + 1
        elif what == "leave" and waiting.get(key):
            tenants.leave(name, line)
            waiting[key] -= 1
        else:
            tenants.charge(name, tokens)
        for number in range(3):
            near, far = tenants.front(number, 100.0, 8)
            counters = [tenants.tokens(one) for one in near + far]
            assert counters == sorted(counters)
            assert sorted(near + far) == sorted(one for (at, one), count in waiting.items() if at == number and count)
