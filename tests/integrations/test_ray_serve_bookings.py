import pytest

from foreserve.dispatch.placement import LeastRequests, RoundRobin
from foreserve.dispatch.placement_anticipated import Anticipated
from foreserve.integrations.ray_serve_bookings import Bookings

REPLICAS = {"a": 8, "b": 8, "c": 8}
LONG = {"prompt": "word " * 4000, "max_tokens": 500}
SHORT = {"prompt": "word", "max_tokens": 5}


@pytest.fixture(params=[Anticipated, LeastRequests, RoundRobin])
def bookings(request):
    return Bookings(request.param())


def send(bookings, request_id, asked, now=0.0, replicas=REPLICAS):
    work = bookings.priced(request_id, [asked], {}, now)
    order = bookings.order(work, replicas, now)
    bookings.routed(request_id, order[0], now)
    return order


def test_every_replica_is_ranked_once(bookings):
    for number in range(30):
        assert sorted(send(bookings, str(number), SHORT, number / 10)) == ["a", "b", "c"]


def test_booked_work_is_zero_after_all_has_ended(bookings):
    for number in range(60):
        send(bookings, str(number), LONG if number % 3 else SHORT, number / 10)
    assert len(bookings) == 60
    for number in range(60):
        bookings.completed(str(number), 10.0 + number)
        bookings.completed(str(number), 10.0 + number)
    bookings.completed("never heard of", 99.0)
    assert len(bookings) == 0
    assert [(bookings.held(name), bookings.tokens(name)) for name in REPLICAS] == [(0, 0)] * 3


def test_a_long_booked_prompt_keeps_short_ones_away():
    bookings = Bookings(Anticipated())
    busy = send(bookings, "long", LONG)[0]
    for number in range(40):
        assert send(bookings, str(number), SHORT, 0.001 * number)[0] != busy
        bookings.completed(str(number), 0.001 * number)


def test_a_cache_that_will_be_full_keeps_others_away():
    bookings = Bookings(Anticipated(), kv_tokens=6000)
    busy = send(bookings, "long", LONG)[0]
    assert {send(bookings, str(number), LONG, 10.0)[0] for number in range(2)} == set(REPLICAS) - {busy}


def test_a_prompt_that_is_known_goes_where_it_was_read():
    bookings = Bookings(Anticipated())
    first = send(bookings, "one", LONG)[0]
    bookings.completed("one", 5.0)
    assert send(bookings, "two", LONG, 6.0)[0] == first


def test_a_retry_moves_the_booking_and_a_price_is_made_once(bookings):
    work = bookings.priced("one", [LONG], {}, 0.0)
    assert bookings.priced("one", [LONG], {}, 5.0) is work
    bookings.routed("one", "a", 0.0)
    assert (bookings.held("a"), bookings.held("b")) == (1, 0)
    bookings.priced("one", [LONG], {}, 1.0)
    bookings.routed("one", "b", 1.0)
    assert (bookings.held("a"), bookings.held("b"), len(bookings)) == (0, 1, 1)


def test_what_was_never_priced_is_not_booked(bookings):
    bookings.routed("stranger", "a", 0.0)
    assert len(bookings) == 0


def test_a_replica_that_is_gone_takes_its_bookings_along(bookings):
    for number in range(9):
        work = bookings.priced(str(number), [SHORT], {}, 0.0)
        bookings.order(work, REPLICAS, 0.0)
        bookings.routed(str(number), "abc"[number % 3], 0.0)
    bookings.lost("a")
    bookings.lost("never heard of")
    assert len(bookings) == 6
    bookings.only(["c"])
    assert len(bookings) == 3
    for number in range(9):
        bookings.completed(str(number), 1.0)
    assert len(bookings) == 0


def test_a_booking_whose_end_is_never_told_expires():
    bookings = Bookings(Anticipated(), expiry_s=100.0)
    send(bookings, "lost", LONG)
    send(bookings, "later", SHORT, 99.0)
    assert len(bookings) == 2
    send(bookings, "last", SHORT, 100.0)
    assert len(bookings) == 2


def test_lengths_are_learned_by_how_long_answers_take():
    bookings = Bookings(Anticipated(), step_s=0.1)
    asked = {"prompt": "word", "max_tokens": 1000}
    assert bookings.priced("first", [asked], {}, 0.0).ramp.steps == 1000
    for number in range(30):
        send(bookings, str(number), asked, float(number))
        bookings.completed(str(number), number + 0.5)
    assert bookings.priced("last", [asked], {}, 99.0).ramp.steps < 20


def test_what_is_priced_and_never_routed_is_bounded(monkeypatch):
    monkeypatch.setattr("foreserve.integrations.ray_serve_bookings.MOST_PRICED", 10)
    bookings = Bookings(Anticipated())
    for number in range(100):
        bookings.priced(str(number), [SHORT], {}, 0.0)
    assert len(bookings._priced) == 10


def test_no_replicas_no_order(bookings):
    assert bookings.order(bookings.priced("a", [SHORT], {}, 0.0), {}, 0.0) == []


@pytest.mark.parametrize("wrong", [{"step_s": 0}, {"kv_tokens": -1}, {"lengths": "guess"}, {"expiry_s": 0}])
def test_wrong_figures(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Bookings(Anticipated(), **wrong)
