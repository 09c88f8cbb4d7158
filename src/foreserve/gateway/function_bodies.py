"""A body of HTTP as a function's arguments: JSON, a form with files, or raw bytes."""

from __future__ import annotations

from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
from fastapi import Request as HttpRequest
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from foreserve.arguments import Parameter
from foreserve.calling import Call as FunctionCall
from foreserve.calling import File
from foreserve.errors import BadRequest
from foreserve.gateway.decoding import Decoder
from foreserve.services.function import Function

MOST_FILES = 64
MOST_FIELDS = 256
MOST_FIELD_BYTES = 2**20
"""Of a form. All of it is bounded as any body is, by `server.max_body_bytes`."""

URLENCODED = "application/x-www-form-urlencoded"
FORMS = ("multipart/form-data", URLENCODED)

_arguments: Decoder[dict[str, Any]] = Decoder(dict[str, Any])


def raw_parameter(takes: tuple[Parameter, ...]) -> str | None:
    """The name of the parameter that is given the body as it is: a function's only one, of bytes."""
    return takes[0].name if len(takes) == 1 and takes[0].takes == "bytes" else None


async def call_of(http: HttpRequest, raw: bytes, kind: Function) -> FunctionCall:
    """The call that a body of any kind asks for. Raises BadRequest."""
    media_type = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in FORMS:
        if media_type == URLENCODED and raw.lstrip().startswith(b"{"):
            raise BadRequest(
                f"the body looks like JSON and its content-type is {URLENCODED}, as `curl -d` sends it; "
                "send content-type: application/json"
            )
        return await _form(http, kind)
    whole = raw_parameter(kind.takes or ())
    if whole is not None:
        return FunctionCall(args={whole: raw})
    return FunctionCall(args=arguments(raw))


def arguments(raw: bytes) -> dict[str, Any]:
    """The keyword arguments of a JSON object; no body has none. Raises BadRequest."""
    args = _arguments.decode(raw or b"{}")
    try:
        # Arguments travel to a worker as msgpack, which has no integers beyond 64 bits.
        msgspec.msgpack.encode(args)
    except OverflowError:
        raise BadRequest("an integer is too large; at most 64 bits are carried") from None
    return args


async def _form(http: HttpRequest, kind: Function) -> FunctionCall:
    """Files and fields by name; several of one name are a list. Fields are text, and may stand for numbers."""
    fields: dict[str, list[str]] = {}
    files: dict[str, list[File]] = {}
    try:
        form = await http.form(max_files=MOST_FILES, max_fields=MOST_FIELDS, max_part_size=MOST_FIELD_BYTES)
    except HTTPException as error:
        raise BadRequest(f"the form cannot be read: {error.detail}") from None
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                file = File(
                    data=await value.read(),
                    name=value.filename or "",
                    content_type=value.content_type or "application/octet-stream",
                )
                files.setdefault(name, []).append(file)
            else:
                fields.setdefault(name, []).append(value)
    finally:
        await form.close()
    args = {name: _field(values, kind.hints.get(name, Any)) for name, values in fields.items()}
    return FunctionCall(args=args, files=files, lax=True)


def _field(values: list[str], hint: Any) -> Any:
    """One field of a name is text, or a list of one where the annotation asks for a list and not for text."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    is_list = any(kind is list or get_origin(kind) is list for kind in kinds) and str not in kinds
    return values if len(values) > 1 or is_list else values[0]
