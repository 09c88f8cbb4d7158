from __future__ import annotations

import json

from foreserve.engines.json_fields import asking_for_usage, edited, fields, value

TEXT = '"\\u00e9é\\ud83d\\ude00"'.encode()
BODY = b'{ "model":"m", "n": 1.50, "big": 123456789012345678901, "text": ' + TEXT + b', "foreserve": {"slo_ms": 5} }'


def test_nothing_to_do_leaves_every_byte() -> None:
    assert edited(BODY, {}) is BODY
    assert edited(BODY, {}, drop=("other",)) is BODY
    assert edited(b"not json", {"a": 1}) == b"not json"
    assert edited(b"[1]", {"a": 1}, drop=("a",)) == b"[1]"


def test_values_that_stay_keep_their_bytes() -> None:
    out = edited(BODY, {"model": "x"}, drop=("foreserve",))
    assert out == b'{"model":"x","n":1.50,"big":123456789012345678901,"text":' + TEXT + b"}"


def test_half_a_surrogate_pair_goes_on() -> None:
    body = b'{"model": "m", "text": "\\ud83d", "foreserve": {}}'
    assert edited(body, {}) is body
    assert edited(body, {}, drop=("foreserve",)) == b'{"model":"m","text":"\\ud83d"}'


def test_other_stream_options_are_kept() -> None:
    out = asking_for_usage(
        b'{"stream_options": {"continuous_usage_stats": false, "include_usage": false}, "stream": true}'
    )
    assert json.loads(out)["stream_options"] == {"continuous_usage_stats": False, "include_usage": True}
    assert json.loads(asking_for_usage(b'{"stream_options": null}'))["stream_options"] == {"include_usage": True}


def test_what_cannot_be_read_has_no_fields() -> None:
    assert fields(b"\xff") is None
    assert fields(b"[]") is None
    assert value(None) is None
    assert value((fields(b'{"a": "\xff"}') or {}).get("a")) is None
