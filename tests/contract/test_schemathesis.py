"""Whatever is sent by the OpenAPI page, and beside it: no unexpected 5xx, only statuses and shapes that it names."""

from __future__ import annotations

import json

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.contract.conftest import KEY
from tests.gateway.house import House

HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def api(house: House) -> schemathesis.BaseSchema:
    page = httpx.get(f"{house.url}/openapi.json", headers=HEADERS).json()
    schema = schemathesis.openapi.from_dict(page)
    schema.config.update(base_url=house.url)
    # The queue of `small` and the missing replicas of `away` answer 429 and 503 as they should; a fuzzer cannot know.
    return schema.exclude(path_regex="^/health/ready$")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@pytest.mark.slow
def test_no_surprises(case: schemathesis.Case):
    case.call_and_validate(
        headers=HEADERS,
        checks=[not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance],
        timeout=20,
    )


def test_the_page_has_every_body_and_status(house: House):
    page = httpx.get(f"{house.url}/openapi.json", headers=HEADERS).json()
    chat = page["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]) == {"200", "400", "401", "404", "413", "429", "500", "503", "504"}
    assert chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/ChatBody")
    schemas = page["components"]["schemas"]
    assert schemas["ChatBody"]["additionalProperties"] is False
    assert {"ChatBody", "CompletionBody", "Message", "Error"} <= set(schemas)
    text = json.dumps(page)
    named = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert named <= set(schemas)
