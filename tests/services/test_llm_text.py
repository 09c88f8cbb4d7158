from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foreserve.services.llm_text import ByteText


@given(st.text(), st.data())
def test_bytes_go_round_whatever_the_parts(text: str, data: st.DataObject):
    words = ByteText()
    ids = words.encode(text)
    assert words.decode(ids) == text
    cut = data.draw(st.integers(0, len(ids)))
    detokenizer = words.detokenizer()
    assert detokenizer.feed(ids[:cut]) + detokenizer.feed(ids[cut:]) + detokenizer.flush() == text


def test_ids_that_are_no_bytes():
    words = ByteText()
    assert words.decode([97, 256, 98]) == "ab"
    assert words.decode([5000]).isprintable()


def test_a_conversation_ends_where_the_assistant_speaks():
    words = ByteText()
    prompt = words.decode(words.conversation([{"role": "user", "content": "hi"}], wall=0.0))
    assert prompt == "user: hi\nassistant: "
