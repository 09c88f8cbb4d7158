from __future__ import annotations

import json

import httpx
import pytest

from foreserve import errors as tree
from foreserve.core import Outcome, OutcomeKind
from foreserve.gateway.errors import error_response, no_such


@pytest.mark.parametrize("kind", list(tree.BY_CODE.values()))
def test_every_error_has_openais_shape(kind: type[tree.RequestError]):
    reply = error_response(kind("words", param="x", retry_after=1.2))
    assert reply.status_code == kind.status
    error = json.loads(bytes(reply.body))["error"]
    assert (error["message"], error["param"], error["code"]) == ("words", "x", kind.code)
    assert isinstance(error["type"], str)
    assert reply.headers.get("retry-after") == ("2" if kind.status in (429, 503) else None)
    assert reply.headers.get("x-should-retry") == ("false" if kind.status == 504 else None)


def test_what_an_upstream_says_is_passed_on():
    outcome = Outcome(
        id="a", service="s", kind=OutcomeKind.FAILED, arrival=0, ended=1, code="upstream_refused", reason="418",
        detail={"status": 418, "body": b"short and stout", "content_type": "text/tea"},
    )  # fmt: skip
    error = outcome.error()
    assert error is not None
    reply = error_response(error)
    assert (reply.status_code, reply.body) == (418, b"short and stout")
    assert reply.headers["content-type"].startswith("text/tea")


def test_a_missing_name_lists_those_there_are():
    assert "'chat'? There are: chat, mood" in no_such("model", "chta", ["chat", "mood"], "model").message
    assert "none" in no_such("model", "x", [], "model").message


def test_unknown_paths_and_methods(client: httpx.Client):
    reply = client.get("/v2/nothing")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    reply = client.delete("/v1/chat/completions")
    assert (reply.status_code, reply.json()["error"]["code"]) == (405, "method_not_allowed")
    assert "POST" in reply.json()["error"]["message"]
    assert reply.headers["allow"] == "POST"
