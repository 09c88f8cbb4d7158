from __future__ import annotations

import pytest

from foreserve.errors import BadRequest
from foreserve.gateway.bodies import decode_chat, decode_completion, decode_target, messages_in_words

HEAD = b'{"model":"m","messages":[{"role":"user","content":"x"}]'


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{nope}", "not valid JSON"),
        (b'{"model": "\xff"}', "not valid UTF-8"),
        (b'{"model": "m", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
        (b"[1]", "expected object, got array"),
        (b'"m"', "expected object, got str"),
    ],
)
def test_what_is_no_body_is_said_in_words(raw: bytes, words: str):
    with pytest.raises(BadRequest, match=words):
        decode_target(raw)


@pytest.mark.parametrize(
    ("raw", "param", "words"),
    [
        (b"{}", "model", "`model` is missing"),
        (HEAD + b',"max_token":1}', "max_token", "did you mean 'max_tokens'"),
        (b'{"model":"m","messages":[{"role":"user","content":"x","contents":1}]}', "messages[0].contents",
         "valid: role, content"),
        (b'{"model":"m","messages":[{"role":"boss","content":"x"}]}', "messages[0].role", "valid: .*user"),
        (b'{"model":"m","messages":[{"role":"user","content":5}]}', "messages[0].content", "expected"),
        (HEAD + b',"response_format":{"type":"xml"}}', "response_format.type", "json_object"),
        (HEAD + b',"n":0}', "n", ">= 1"),
        (HEAD + b',"response_format":{"type":"json_schema"}}', "response_format", "json_schema"),
        (HEAD + b',"max_tokens":1,"max_completion_tokens":2}', "max_tokens", "differ"),
        (HEAD + b',"logit_bias":{"5":1}}', "logit_bias", "not supported"),
        (HEAD + b',"reasoning_effort":"low"}', "reasoning_effort", "not supported"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_the_choices(raw: bytes, param: str, words: str):
    with pytest.raises(BadRequest, match=words) as caught:
        decode_chat(raw)
    assert caught.value.param == param


def test_fields_our_engines_lack_are_not_offered():
    with pytest.raises(BadRequest) as caught:
        decode_chat(HEAD + b',"toolz":1}')
    assert "temperature" in caught.value.message
    assert "tools" not in caught.value.message


@pytest.mark.parametrize(
    "content",
    [
        b'[{"type":"image_url","image_url":{"url":"http://x"}}]',
        b'[{"type":"text"}]',
        b"null",
    ],
)
def test_content_that_is_not_text_is_refused(content: bytes):
    asked = decode_chat(b'{"model":"m","messages":[{"role":"user","content":' + content + b"}]}")
    with pytest.raises(BadRequest) as caught:
        messages_in_words(asked.messages)
    assert (caught.value.param or "").startswith("messages[0].content")


def test_tool_calls_of_earlier_turns_are_refused_rather_than_dropped():
    raw = b'{"model":"m","messages":[{"role":"assistant","content":"","tool_calls":[{"id":"a"}]}]}'
    with pytest.raises(BadRequest) as caught:
        messages_in_words(decode_chat(raw).messages)
    assert caught.value.param == "messages[0].tool_calls"


def test_forms_of_a_prompt():
    def prompts(prompt: bytes) -> object:
        return decode_completion(b'{"model":"m","prompt":' + prompt + b"}").prompts()

    assert prompts(b'"a"') == ["a"]
    assert prompts(b'["a","b"]') == ["a", "b"]
    assert prompts(b"[1,2]") == [[1, 2]]
    assert prompts(b"[[1],[2,3]]") == [[1], [2, 3]]
