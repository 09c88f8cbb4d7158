from __future__ import annotations

import base64

import pytest

from foreserve.errors import BadRequest, Unauthorized
from foreserve.gateway.bodies import TermsBody
from foreserve.gateway.terms import Keys, Terms, terms
from foreserve.settings import ApiKey, ServiceSettings

PLAIN = ServiceSettings()
ACME = ApiKey(key="secret-a", tenant="acme", max_utility=3.0, deadline_s=7.0)


def test_without_anything_the_service_decides():
    settings = ServiceSettings(deadline_s=5.0, utility=2.0)
    assert terms({}, None, None, settings) == Terms(deadline_s=5.0, utility=2.0, tenant="default")


def test_headers_and_body_and_who_wins():
    headers = {"x-slo-ms": "1500", "x-utility": "4", "x-tenant": "a"}
    assert terms(headers, None, None, PLAIN) == Terms(deadline_s=1.5, utility=4.0, tenant="a")
    body = TermsBody(slo_ms=200, tenant="b")
    assert terms(headers, body, None, PLAIN) == Terms(deadline_s=0.2, utility=4.0, tenant="b")


def test_tenant_and_bound_of_utility_belong_to_the_key():
    assert terms({}, None, ACME, PLAIN) == Terms(deadline_s=7.0, utility=1.0, tenant="acme")
    assert terms({"x-tenant": "acme", "x-utility": "3"}, None, ACME, PLAIN).utility == 3.0
    assert terms({"x-slo-ms": "10"}, None, ACME, PLAIN).deadline_s == 0.01
    generous = ServiceSettings(utility=9.0)
    assert terms({}, None, ACME, generous).utility == 3.0
    with pytest.raises(BadRequest, match="at most 3") as caught:
        terms({"x-utility": "3.5"}, None, ACME, PLAIN)
    assert caught.value.param == "x-utility"
    with pytest.raises(BadRequest) as caught:
        terms({}, TermsBody(tenant="other"), ACME, PLAIN)
    assert caught.value.param == "foreserve.tenant"


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-slo-ms", "soon"), ("x-slo-ms", "0"), ("x-slo-ms", "-1"), ("x-slo-ms", "nan"), ("x-slo-ms", "inf"),
        ("x-utility", "-1"), ("x-utility", "1e999"), ("x-tenant", ""), ("x-tenant", "a b"), ("x-tenant", "a" * 65),
    ],
)  # fmt: skip
def test_wrong_headers_are_named(header: str, value: str):
    with pytest.raises(BadRequest) as caught:
        terms({header: value}, None, None, PLAIN)
    assert caught.value.param == header


def test_keys():
    keys = Keys([ACME, ApiKey(key="secret-b")])
    assert keys.check("Bearer secret-a", "POST") is ACME
    assert keys.check("bearer  secret-a ", "POST") is ACME
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer secret",
        "Bearer secret-ab",
        "Digest secret-a",
        "Bearer \udcff",
    ):
        with pytest.raises(Unauthorized):
            keys.check(wrong, "POST")
    assert Keys([]).check(None, "POST") is None


def test_a_browser_may_show_its_key_as_a_password_to_read_only():
    keys = Keys([ACME])
    shown = "Basic " + base64.b64encode(b"me:secret-a").decode()
    assert keys.check(shown, "GET") is ACME
    with pytest.raises(Unauthorized):
        keys.check(shown, "POST")
    with pytest.raises(Unauthorized):
        keys.check("Basic !!!", "GET")
