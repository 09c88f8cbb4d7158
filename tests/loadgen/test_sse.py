import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve.loadgen.sse import MAX_EVENT_BYTES, Event, EventTooLong, Parser


def parse(*pieces):
    parser = Parser()
    return [event for piece in pieces for event in parser.feed(piece)] + parser.close()


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_every_line_ending(end):
    text = end.join([b"data: a", b"", b": comment", b"event: error", b"data:b", b"data: c", b"", b"id: 7", b"", b""])
    assert parse(text) == [Event("", "a"), Event("error", "b\nc")]


def test_data_keeps_all_but_one_leading_space_and_an_empty_field_counts():
    assert parse(b"data:  x\ndata\ndata:y:z\n\n") == [Event("", " x\n\ny:z")]


def test_byte_order_mark_and_an_event_without_its_blank_line():
    assert parse(b"\xef\xbb\xbfdata: first\n\ndata: [DONE]\n") == [Event("", "first"), Event("", "[DONE]")]
    assert parse(b"data: [DONE]") == [Event("", "[DONE]")]


def test_the_event_name_ends_with_its_event():
    assert parse(b"event: error\n\ndata: x\n\n") == [Event("", "x")]


STREAM = "data: Grüße 世界 🚲\r\n\r\nevent: e\rdata: a\r\rdata: ä\ndata: ö\n\n:c\n\ndata: end\r\n\r\n".encode()


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_where_the_network_cuts_makes_no_difference(cuts):
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(edges)]
    assert parse(*pieces) == [
        Event("", "Grüße 世界 🚲"),
        Event("e", "a"),
        Event("", "ä\nö"),
        Event("", "end"),
    ]


def test_an_endless_event_is_refused():
    line = b"data: " + b"x" * 2**20 + b"\n"
    with pytest.raises(EventTooLong):
        Parser().feed(line * (MAX_EVENT_BYTES // 2**20 + 1))
    with pytest.raises(EventTooLong):
        Parser().feed(b"x" * (MAX_EVENT_BYTES + 1))
