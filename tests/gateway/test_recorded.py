from foreserve.engines.forwarding import Body
from foreserve.engines.generation import Generate
from foreserve.gateway import recorded
from foreserve.gateway.recorded import Answer, Hashes, Ids
from foreserve.services.llm_decoder import Ended, TextDelta


def ids(prompt: list[int]) -> bytes:
    return Ids(Generate(prompt=prompt, max_tokens=1)).data


def test_equal_beginnings_have_equal_hashes_up_to_where_they_part():
    hashes = Hashes(b"k" * 32, 4)
    one, other = hashes.tokens(ids([1, 2, 3, 4, 5, 6, 7, 8, 9])), hashes.tokens(ids([1, 2, 3, 4, 5, 6, 7, 0]))
    assert len(one) == len(other) == 2
    assert one[0] == other[0]
    assert one[1] != other[1]
    # The same block after another beginning is another prefix.
    assert hashes.tokens(ids([9, 9, 9, 9, 5, 6, 7, 8]))[1] != one[1]
    assert hashes.tokens(ids([1, 2, 3])) == ()
    assert all(0 <= block < 2**63 for block in one)


def test_another_key_gives_other_hashes():
    assert Hashes(b"a" * 32, 1).tokens(ids([1])) != Hashes(b"b" * 32, 1).tokens(ids([1]))
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


def test_hashes_of_one_row_are_bounded(monkeypatch):
    monkeypatch.setattr(recorded, "MOST_HASHES", 3)
    assert len(Hashes(b"k" * 32, 1).tokens(ids(list(range(100))))) == 3
    assert len(Hashes(b"k" * 32, 1).tokens(ids(list(range(2))))) == 2


def test_what_has_no_tokens_has_no_ids():
    assert Ids({"x": 1}).data == b""
