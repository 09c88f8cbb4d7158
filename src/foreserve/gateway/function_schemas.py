"""A function's parameters on the OpenAPI page, as far as its annotations can be told there."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from foreserve.arguments import Parameter
from foreserve.gateway.function_bodies import raw_parameter
from foreserve.gateway.schemas import describe
from foreserve.services.function import Function

_BINARY = {"type": "string", "format": "binary"}
_FILES: dict[str, dict[str, Any]] = {"file": _BINARY, "files": {"type": "array", "items": _BINARY}}


def described(name: str, kind: Function, components: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the route of function `name`; the types that its parameters name join `components`."""
    takes = kind.takes or ()
    properties = {each.name: _schema(name, each, kind.hints.get(each.name, Any), components) for each in takes}
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [each.name for each in takes if each.required]:
        schema["required"] = required
    words = describe(f"Call {name}", body_schema=schema, streams=kind.streams)
    content = words["openapi_extra"]["requestBody"]["content"]
    if raw_parameter(takes) is not None:
        content["application/octet-stream"] = {"schema": _BINARY}
        del content["application/json"]
    elif any(each.takes in _FILES for each in takes):
        content["multipart/form-data"] = content.pop("application/json")
    words["responses"][200]["content"]["application/json"] = {"schema": {}}  # a result may be any value
    return words


def _schema(name: str, parameter: Parameter, hint: Any, components: dict[str, Any]) -> dict[str, Any]:
    if parameter.takes in _FILES:
        return _FILES[parameter.takes]
    if hint is Any:
        return {}
    prefix = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    try:
        (schema,), found = msgspec.json.schema_components(
            (hint,), ref_template=f"#/components/schemas/{prefix}.{{name}}", schema_hook=_hook
        )
    except (TypeError, NotImplementedError):  # a type of which no schema is known
        return {}
    components.update({f"{prefix}.{key}": value for key, value in found.items()})
    return schema


def _hook(kind: type[Any]) -> dict[str, Any]:
    """Types that msgspec does not know: models of pydantic are objects, arrays of numpy and torch are lists."""
    if hasattr(kind, "model_json_schema"):
        return {"type": "object", "title": kind.__name__}
    if kind.__name__ in ("ndarray", "Tensor"):
        return {"type": "array"}
    raise NotImplementedError
