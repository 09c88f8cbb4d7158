"""Whatever is sent by the OpenAPI page, and beside it: no unexpected 5xx, only statuses and shapes that it names."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.contract.conftest import KEY
from tests.gateway.house import House

HEADERS = {"authorization": f"Bearer {KEY}"}


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

EXAMPLES = 20

OPERATIONS = [
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/embeddings",
    "POST /v1/rerank",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "POST /v1/functions/{name}",
    "GET /v1/pipelines",
    "GET /v1/pipelines/{name}",
    "POST /v1/pipelines/{name}",
    "GET /v1/pipelines/{name}/requests/{request_id}/timeline",
    "GET /v1/graphs",
    "GET /v1/graphs/{name}/status",
    "POST /v1/graphs/{name}/query",
    "POST /v1/graphs/{name}/refresh",
    "POST /v1/graphs/{name}/updates",
    "POST /typed",
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2/models/{name}",
    "GET /v2/models/{name}/ready",
    "POST /v2/models/{name}/infer",
    "GET /health/live",
    "GET /health/ready",
    "GET /metrics",
    "GET /v1/foreserve/status",
    "GET /v1/foreserve/runtime",
]


def page_of(house: House) -> dict[str, Any]:
    page: dict[str, Any] = httpx.get(f"{house.url}/openapi.json", headers=HEADERS).json()
    return page


def with_names_there_are(page: dict[str, Any]) -> dict[str, Any]:
    """Else nearly everything would end at a 404."""
    for body in ("ChatBody", "CompletionBody"):
        page["components"]["schemas"][body]["properties"]["model"] = {"enum": ["chat"]}
    page["paths"]["/v1/functions/{name}"]["post"]["parameters"][-1]["schema"] = {"enum": ["echo", "items"]}
    page["paths"]["/v1/pipelines/{name}"]["post"]["parameters"][-1]["schema"] = {"enum": ["echoed"]}
    page["paths"]["/v2/models/{name}/infer"]["post"]["parameters"][-1]["schema"] = {"enum": ["echo", "typed"]}
    return page


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("label", OPERATIONS)
def test_no_surprises(house: House, label: str, mode: GenerationMode):
    schema = schemathesis.openapi.from_dict(with_names_there_are(page_of(house)))
    method, path = label.split()
    operation = schema[path][method]

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case: schemathesis.Case) -> None:
        response = case.call(base_url=house.url, headers=HEADERS, timeout=20)
        asked_for = response.status_code == 504 and "deadline" in str(response.json()["error"])
        checks = [check for check in CHECKS if not (asked_for and check is not_a_server_error)]
        case.validate_response(response, checks=checks)

    try:
        each()
    except Unsatisfiable:
        pytest.skip("nothing of the kind can be made for this path")


def test_every_path_of_the_page_is_tried(house: House):
    page = page_of(house)
    assert sorted(OPERATIONS) == sorted(f"{m.upper()} {path}" for path, all_ in page["paths"].items() for m in all_)


def test_the_page_has_every_body_and_status(house: House):
    page = page_of(house)
    chat = page["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]) == {"200", "400", "401", "404", "413", "429", "500", "503", "504"}
    assert chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/ChatBody")
    schemas = page["components"]["schemas"]
    assert schemas["ChatBody"]["additionalProperties"] is False
    assert {"ChatBody", "CompletionBody", "Message", "Error"} <= set(schemas)
    text = json.dumps(page)
    named = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert named <= set(schemas)
