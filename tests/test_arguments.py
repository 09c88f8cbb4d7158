"""Calls against annotations: what is made of them, and what a caller is told whose call does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import BaseModel

from foreserve.arguments import Arguments
from foreserve.calling import Call, File
from foreserve.errors import BadRequest
from foreserve.tensors import Tensor, tensor_of

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]


class Item(msgspec.Struct):
    name: str
    price: float = 0.0


@dataclass
class Point:
    x: int


class Words(TypedDict):
    text: str


class Model(BaseModel):
    size: int


def values(code: Any, batched: bool = False, **words: Any) -> dict[str, Any]:
    return Arguments(code, batched=batched).values(Call(**words))


def test_values_are_made_by_annotation():
    def code(a: int, b: float, c: list[Item], d: Point, e: Words, f: Model, g: Any = None, *, h=1): ...

    given = {
        "a": 1,
        "b": 2,
        "c": [{"name": "x"}],
        "d": {"x": 3},
        "e": {"text": "t"},
        "f": {"size": 4},
        "g": [1],
        "h": {},
    }
    made = values(code, args=given)
    assert made["c"] == [Item("x")]
    assert (made["b"], made["d"], made["e"]) == (2.0, Point(3), {"text": "t"})
    assert made["f"].size == 4
    assert (made["g"], made["h"]) == ([1], {})


@pytest.mark.parametrize(
    ("args", "param", "words"),
    [
        ({"a": "x", "c": []}, "a", "`a`: expected int, got str"),
        ({"a": 1, "c": [{"name": 1}]}, "c[0].name", "`c[0].name`: expected str, got int; `c` takes list[Item]"),
        ({"a": 1, "c": [], "u": "gbp"}, "u", "`u`: invalid enum value 'gbp'; `u` takes Literal['eur', 'usd']"),
        ({"a": 1, "c": [], "f": {"size": "many"}}, "f", "`f`: size: Input should be a valid integer"),
        ({"a": 0, "c": []}, "a", "`a`: expected int >= 1"),
        (
            {"a": 1},
            None,
            "missing a required argument: 'c'; the function takes "
            "(a: Annotated[int, Meta(ge=1)], c: list[Item], f: Model | None = …, u: Literal['eur', 'usd'] = …)",
        ),
        ({"a": 1, "c": [], "z": 1}, None, "unexpected keyword argument 'z'"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place_and_what_it_takes(args: Any, param: str | None, words: str):
    def code(
        a: Annotated[int, msgspec.Meta(ge=1)],
        c: list[Item],
        f: Model | None = None,
        u: Literal["eur", "usd"] = "eur",
    ): ...

    with pytest.raises(BadRequest) as error:
        values(code, args=args)
    assert error.value.param == param
    assert words in error.value.message


def test_a_name_that_only_a_type_checker_knows_costs_its_own_parameter_alone():
    def code(a: Unknown, b: int): ...

    assert values(code, args={"a": object, "b": 1}) == {"a": object, "b": 1}
    with pytest.raises(BadRequest, match="`b`"):
        values(code, args={"a": 1, "b": "x"})


def test_text_of_a_form_may_stand_for_a_number():
    def code(a: int, b: bool): ...

    assert values(code, args={"a": "1", "b": "true"}, lax=True) == {"a": 1, "b": True}
    with pytest.raises(BadRequest):
        values(code, args={"a": "1", "b": True})


def test_in_a_batch_a_call_brings_one_element():
    def code(a: list[int], b: list, c): ...

    assert values(code, batched=True, args={"a": 1, "b": [2], "c": 3}) == {"a": 1, "b": [2], "c": 3}
    with pytest.raises(BadRequest, match="`a`: expected int, got array"):
        values(code, batched=True, args={"a": [1], "b": 1, "c": 1})


def test_what_is_missing_from_a_call_of_a_batch_is_told_as_one_element():
    def code(query: list[list[float]], other=None): ...

    with pytest.raises(BadRequest) as error:
        values(code, batched=True, args={})
    assert error.value.message.endswith("the function takes (query: list[float], other: any value = …)")


def test_hints_are_told_without_their_modules():
    def code(a: dict[str, list[Item]], b: tuple[int, ...], c: NDArray[np.float32], d: list[Any], e: None): ...

    assert [parameter.words for parameter in Arguments(code).parameters] == [
        "dict[str, list[Item]]", "tuple[int, ...]", "ndarray[tuple[Any, ...], dtype[float32]]", "list[Any]", "None",
    ]  # fmt: skip


def test_files():
    def code(one: File, more: list[File], raw: bytes, n: int = 0): ...

    file = File(data=b"x", name="a.txt")
    made = values(code, files={"one": [file], "more": [file, file], "raw": [file]})
    assert made == {"one": file, "more": [file, file], "raw": b"x"}
    takes = [parameter.takes for parameter in Arguments(code).parameters]
    assert takes == ["file", "files", "bytes", "value"]
    with pytest.raises(BadRequest, match="expected one file, got 2"):
        values(code, files={"one": [file, file], "more": [], "raw": [file]})
    with pytest.raises(BadRequest, match="`n`: expected int, got a file"):
        values(code, files={"one": [file], "more": [], "raw": [file], "n": [file]})


def test_arrays_from_lists_and_tensors():
    def code(a: np.ndarray, b: NDArray[np.float32], c=None): ...

    made = values(code, args={"a": [[1, 2]], "b": [1, 2]}, tensors={"c": Tensor("INT8", (2,), b"\x01\x02")})
    assert made["a"].shape == (1, 2)
    assert made["b"].dtype == np.float32
    assert made["c"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        made["c"][0] = 5
    for wrong in ([[1], [1, 2]], ["x", 1], {"a": 1}):
        with pytest.raises(BadRequest, match="`b`: expected"):
            values(code, args={"a": [1], "b": wrong})


def test_tensors_become_what_is_annotated():
    def code(n: int, names: list[str], raw: bytes, rows: list[list[float]]): ...

    texts = tensor_of(["a", "b"])
    given = {"n": tensor_of(3), "names": texts, "raw": tensor_of(b"\xff"), "rows": tensor_of([[1.0], [2.0]])}
    assert values(code, tensors=given) == {"n": 3, "names": ["a", "b"], "raw": b"\xff", "rows": [[1.0], [2.0]]}
    with pytest.raises(BadRequest, match=r"`n`: expected int, got BYTES of shape \[2\]"):
        values(code, tensors={**given, "n": texts})


def test_a_builtin_without_a_signature_takes_anything():
    assert values(max, args={"anything": 1}) == {"anything": 1}
