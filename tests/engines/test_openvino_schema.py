import json

import pytest

from foreserve.engines.openvino_schema import MAX_BYTES, SchemaCheck

PLAIN = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(200)}}


def nested(depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        (json.dumps({"enum": ["x" * MAX_BYTES]}), "longer than"),
        (json.dumps(nested(100)), "nested more than"),
        (json.dumps({"anyOf": [{"type": "string", "minLength": i} for i in range(17)]}), "more than 16 of"),
        ("[" * 8000, "not JSON"),
    ],
)
def test_what_would_stall_everybody_is_refused_in_words(schema, words):
    assert words in SchemaCheck().refusal(schema)


@pytest.mark.parametrize(
    "schema", [PLAIN, nested(30), {}, {"anyOf": [{"type": "string", "minLength": i} for i in range(16)]}]
)
def test_what_people_write_is_let_through(schema):
    assert SchemaCheck().refusal(json.dumps(schema)) is None


def test_what_failed_once_is_refused_at_once_and_the_memory_is_bounded():
    check = SchemaCheck()
    check.remember('{"type": "x"}', "no such type")
    assert check.refusal('{"type": "x"}') == "no such type"
    for i in range(256):
        check.remember(f'{{"type": "x{i}"}}', "no such type")
    assert check.refusal('{"type": "x"}') is None
    assert check.refusal('{"type": "x255"}') == "no such type"
