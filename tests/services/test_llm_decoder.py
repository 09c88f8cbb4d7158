from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve.core import Chunk, Finish, FinishReason, Work
from foreserve.engines.generation import Generate, Tokens
from foreserve.services.llm_decoder import Ended, StopMatcher, TextDecoder, TextDelta
from foreserve.services.llm_text import ByteText

EOS = 256


def decoder(**words: object) -> TextDecoder:
    asked = Generate(**{"prompt": [1, 2, 3], "max_tokens": 99, "stop_tokens": (EOS,), **words})  # type: ignore[arg-type]
    return TextDecoder(Work(id="a", payload=asked, cost={}, arrival=0.0), ByteText())


def chunk(ids: list[int], finish: FinishReason | None = None, logprobs: list[float] | None = None) -> Chunk:
    end = Finish(reason=finish) if finish else None
    return Chunk(id="a", index=0, data=Tokens(ids=ids, logprobs=logprobs), finish=end)


def read(words: TextDecoder, *chunks: Chunk) -> tuple[str, Ended | None, list[TextDelta], bool]:
    events = []
    enough = False
    for each in chunks:
        decoded = words.feed(each)
        events.extend(decoded.events)
        enough = enough or decoded.enough
    deltas = [event for event in events if isinstance(event, TextDelta)]
    ends = [event for event in events if isinstance(event, Ended)]
    assert len(ends) <= 1
    assert not ends or events[-1] is ends[0]
    return "".join(delta.text for delta in deltas), ends[0] if ends else None, deltas, enough


def test_characters_come_whole():
    ids = list("aé€".encode())
    text, end, deltas, enough = read(decoder(), *(chunk([i]) for i in ids), chunk([], "length"))
    assert text == "aé€"
    assert [delta.text for delta in deltas] == ["a", "é", "€"]
    assert end == Ended(reason="length", prompt_tokens=3, output_tokens=6)
    assert not enough


def test_an_unfinished_character_is_shown_as_one_at_the_end():
    assert read(decoder(), chunk([0xE2, 0x82]), chunk([], "stop"))[0] == "\ufffd"


def test_a_stop_token_counts_but_has_no_text():
    text, end, _, _ = read(decoder(), chunk([97, EOS], "stop"))
    assert (text, end and end.output_tokens, end and end.reason) == ("a", 2, "stop")


def test_the_engines_own_count_is_taken_where_it_is_higher():
    finish = Finish(reason="stop", usage={"output_tokens": 3.0, "cached_tokens": 2.0})
    end = read(decoder(), chunk([97, 98]), Chunk(id="a", index=1, finish=finish))[1]
    assert end == Ended(reason="stop", prompt_tokens=3, output_tokens=3, cached_tokens=2)


def test_a_stop_string_across_chunks_is_never_shown_and_ends_the_request():
    words = decoder(stop=("</end>",))
    text, end, deltas, enough = read(words, *(chunk([b]) for b in b"one < two </end> three"))
    assert (text, enough, end and end.reason) == ("one < two ", True, "stop")
    assert all("</" not in delta.text for delta in deltas)
    assert end is not None
    assert end.output_tokens == len("one < two </end>")
    assert words.usage() == {"prompt_tokens": 3.0, "output_tokens": float(end.output_tokens)}


def test_what_was_held_back_comes_at_the_end():
    text, end, _, enough = read(decoder(stop=("STOP",)), chunk(list(b"a ST")), chunk([], "length"))
    assert (text, enough, end and end.reason) == ("a ST", False, "length")


def test_a_stop_string_in_the_last_chunk_is_a_stop():
    text, end, _, _ = read(decoder(stop=("X",)), chunk(list(b"aXb"), "length"))
    assert (text, end and end.reason) == ("a", "stop")


def test_nothing_ends_an_answer_that_failed():
    text, end, _, enough = read(decoder(), chunk([97]), chunk([], "error"))
    assert (text, end, enough) == ("a", None, False)


def test_logprobs_go_with_their_tokens_text():
    words = decoder(stop=("ST",), logprobs=0)
    feeds = [chunk([b], logprobs=[-float(i)]) for i, b in enumerate(b"aSbST")]
    _, _, deltas, _ = read(words, *feeds)
    shown = [(delta.text, [(p.token, p.logprob, p.offset) for p in delta.logprobs]) for delta in deltas]
    assert shown == [("a", [("a", -0.0, 0)]), ("Sb", [("S", -1.0, 1), ("b", -2.0, 2)])]


def test_tokens_that_crossed_a_process():
    plain = msgspec.to_builtins(chunk([97], "stop"))
    assert read(decoder(), msgspec.convert(plain, Chunk))[0] == "a"


def test_a_resumed_answer_goes_on_in_the_middle_of_a_character_and_of_a_stop_string():
    words = decoder(stop=("STOP",), temperature=0.0, max_tokens=20)
    ids = list("é ST".encode())
    before = read(words, chunk([ids[0]]), chunk(ids[1:]), chunk([], "error"))
    assert before[:2] == ("é ", None)
    resumed = words.resume()
    assert resumed is not None
    assert resumed.steps == 5
    assert resumed.payload.prompt == [1, 2, 3, *ids]
    assert (resumed.payload.max_tokens, resumed.payload.continued) == (15, 5)
    finish = Finish(reason="stop", usage={"prompt_tokens": 8.0, "output_tokens": 3.0, "cached_tokens": 8.0})
    rest = read(
        words, Chunk(id="a", index=0, attempt=1, data=Tokens(ids=list(b"AY"))), Chunk(id="a", index=1, finish=finish)
    )
    assert rest[0] == "STAY"
    assert rest[1] == Ended(reason="stop", prompt_tokens=3, output_tokens=8, cached_tokens=3)
    assert words.usage() == {"prompt_tokens": 3.0, "output_tokens": 8.0}


def test_an_answer_can_be_resumed_again():
    words = decoder(temperature=0.7)
    read(words, chunk([97]))
    words.resume()
    read(words, chunk([98, 99]))
    resumed = words.resume()
    assert resumed is not None
    assert (resumed.payload.prompt, resumed.payload.max_tokens, resumed.steps) == ([1, 2, 3, 97, 98, 99], 96, 3)


@pytest.mark.parametrize(
    "terms",
    [
        {"temperature": 0.7, "seed": 1},
        {"json_schema": "{}"},
        {"frequency_penalty": 0.5},
        {"presence_penalty": 0.5},
        {"max_tokens": 2},
    ],
)
def test_what_would_not_be_the_same_answer_is_not_resumed(terms: dict[str, object]):
    words = decoder(**terms)
    read(words, chunk([97, 98]))
    assert words.resume() is None


@pytest.mark.parametrize(
    ("terms", "goes_on"),
    [
        ({"temperature": 0.7, "seed": 1}, True),
        ({"temperature": 0.0, "presence_penalty": 0.5}, True),
        ({"json_schema": "{}"}, False),
    ],
)
def test_an_engine_that_resumes_goes_on_with_seeds_and_penalties(terms: dict[str, object], goes_on: bool):
    payload = Generate(prompt=[1, 2, 3], max_tokens=100, **terms)  # type: ignore[arg-type]
    work = Work(id="a", payload=payload, cost={"slots": 1.0}, arrival=0.0)
    words = TextDecoder(work, ByteText(), resumes=True)
    read(words, chunk([97, 98]))
    resumed = words.resume()
    assert (resumed is not None) is goes_on
    if resumed is not None:
        assert (resumed.payload.prompt, resumed.payload.continued) == ([1, 2, 3, 97, 98], 2)


def test_a_greedy_seed_draws_nothing():
    words = decoder(temperature=0.0, seed=1)
    read(words, chunk([97]))
    assert words.resume() is not None


alphabet = st.text("ab<", max_size=30)


@given(text=alphabet, stops=st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=3), data=st.data())
def test_how_the_text_is_cut_into_chunks_changes_nothing(text: str, stops: list[str], data: st.DataObject):
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    matcher = StopMatcher(tuple(stops))
    shown = ""
    hit = False
    for index, part in enumerate(parts):
        given_now, hit = matcher.feed(part, last=index == len(parts) - 1)
        shown += given_now
        assert expected.startswith(shown)
        if hit:
            break
    assert (shown, hit) == (expected, bool(ends))
