from foreserve.engines.forwarding import Body
from foreserve.gateway import recorded
from foreserve.gateway.recorded import Answer, Hashes
from foreserve.services.llm_decoder import Ended, TextDelta


def test_equal_beginnings_have_equal_hashes_up_to_where_they_part():
    hashes = Hashes(b"k" * 32, 4)
    one, other = hashes.tokens([1, 2, 3, 4, 5, 6, 7, 8, 9]), hashes.tokens([1, 2, 3, 4, 5, 6, 7, 0])
    assert len(one) == len(other) == 2
    assert one[0] == other[0]
    assert one[1] != other[1]
    # The same block after another beginning is another prefix.
    assert hashes.tokens([9, 9, 9, 9, 5, 6, 7, 8])[1] != one[1]
    assert hashes.tokens([1, 2, 3]) == ()
    assert all(0 <= block < 2**63 for block in one)


def test_another_key_gives_other_hashes():
    assert Hashes(b"a" * 32, 1).tokens([1]) != Hashes(b"b" * 32, 1).tokens([1])
    assert Hashes(b"a" * 32, 1).word(b"x") != Hashes(b"b" * 32, 1).word(b"x")


def test_text_is_taken_by_four_bytes_a_token():
    hashes = Hashes(b"k" * 32, 2)
    assert len(hashes.text(b"12345678" * 3 + b"1234567")) == 3


def test_an_answers_text_is_bounded(monkeypatch):
    monkeypatch.setattr(recorded, "MOST_TEXT", 5)
    answer = Answer()
    answer.take([TextDelta(text="abc"), Ended(reason="stop", prompt_tokens=1, output_tokens=1)])
    answer.take([Body(data=b"defg"), TextDelta(text="h")])
    assert answer.whole() == "abcde"
