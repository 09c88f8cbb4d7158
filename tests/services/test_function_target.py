"""What is wrong with decorated code is told when it is decorated, before a worker has tried it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from foreserve import Weights, function
from foreserve.core import EngineInfo
from foreserve.errors import BadRequest, ConfigError
from foreserve.services.function import Function


class NoCall:
    pass


class Needs:
    def __init__(self, model: str) -> None: ...
    def __call__(self) -> None: ...


class NeedsWeights:
    def __init__(self, weights: Weights) -> None: ...
    def __call__(self) -> None: ...


class MayHaveWeights:
    def __init__(self, weights: Weights | None = None) -> None: ...
    def __call__(self, n: int) -> int:
        return n


def yields(n: list[int]) -> Iterator[int]:
    yield from n


def nothing() -> list[int]:
    return []


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (NoCall, {}, "'NoCall': the class has no `__call__`"),
        (Needs, {}, "`__init__` needs 'model'; a worker gives it `weights` alone"),
        (NeedsWeights, {}, "write @function(weights=…)"),
        (yields, {"batch": 2}, "'yields': batch is 2, and it yields items"),
        (nothing, {"batch": 2}, "takes no argument that could be a list"),
        (nothing, {"batch": 0}, "`batch` is 0; it must be at least 1"),
        (nothing, {"batsh": 2}, "did you mean 'batch'?"),
        (nothing, {"timeout_s": 0}, "`timeout_s` is 0"),
        (nothing, {"memory_mb": -1}, "`memory_mb` is -1"),
        (nothing, {"weights": {"a b": "x"}}, "'a b' is no name for weights"),
        (nothing, {"weights": "s3://bucket/x"}, "valid: a path, http://, https://"),
        (nothing, {"weights": {"a": {"source": "x", "sha256": "beef"}}}, "it must be 64 hex digits"),
        (nothing, {"weights": {"a": {"sauce": "x"}}}, "did you mean 'source'?"),
        (nothing, {"route": "predict"}, "`route` is 'predict'; valid: a path such as /predict"),
        (nothing, {"route": "/a b"}, "valid: a path"),
        (nothing, {"route": "/v1/mine"}, "/v1 is ours; taken: /docs"),
    ],
)
def test_what_is_wrong_is_told_at_the_decorator(code: Callable[..., Any], words: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as error:
        function(**words)(code)
    assert said in str(error.value)


def test_a_class_stays_what_it_is_when_it_is_called():
    made = function(MayHaveWeights)
    assert made()(n=3) == 3
    assert (made.__name__, made.takes is not None and [each.name for each in made.takes]) == ("MayHaveWeights", ["n"])
    with pytest.raises(BadRequest, match="`n`: expected int"):
        made.call({"n": "x"})


def test_what_is_not_known_of_named_code_the_first_worker_tells():
    named = Function("somewhere:code")
    assert named.takes is None
    facts = {"streams": False, "takes": [{"name": "n", "takes": "bytes", "required": True, "words": "bytes"}]}
    named.ready(EngineInfo(batching="continuous", capacity={"slots": 1}, facts=facts))
    assert named.takes is not None
    assert named.takes[0].takes == "bytes"
    assert named.model_inputs()[0].datatype == "BYTES"


def test_a_named_file_is_read_as_python_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_bytes("# coding: latin-1\ndef grüßen(): ...\n".encode("latin-1"))
    Function(f"{file}:grüßen").check()
    file.write_bytes("def grüßen(): ...\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"target: .*code\.py, line 1: "):
        Function(f"{file}:grüßen").check()
    file.write_bytes(b"def greet(): ...\n\0")
    with pytest.raises(ConfigError, match=r"target: .*code\.py.*null bytes"):
        Function(f"{file}:greet").check()
