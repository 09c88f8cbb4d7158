from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from foreserve.calling import Call
from foreserve.core import Chunk, EngineInfo, Finish, Work
from foreserve.engines.python import PythonEngine
from foreserve.errors import BadRequest, ConfigError
from foreserve.services.function import Function, function
from foreserve.settings import FunctionSettings


@function
def plain(x: int) -> int:
    """Doubles."""
    return 2 * x


@function(max_running=3, replicas=2, idempotent=True)
def worded() -> None: ...


def test_the_decorator_bare_and_with_words():
    assert plain(4) == 8
    assert (plain.__name__, plain.__doc__) == ("plain", "Doubles.")
    assert plain.settings.target == f"{__file__}:plain"
    assert not plain.idempotent
    specs = worded.engines()
    assert len(specs) == 2
    assert specs[0].options == {"target": f"{__file__}:worded", "max_running": 3}
    assert worded.idempotent


def test_code_that_a_worker_could_not_find_is_refused():
    def inner() -> None: ...

    with pytest.raises(ConfigError, match="top of its file"):
        function(inner)
    with pytest.raises(ConfigError, match="not a function"):
        function(5)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="replica"):
        function(replica=2)(plain.__wrapped__)  # type: ignore[attr-defined]


def test_by_target():
    named = Function("json:dumps")
    assert named.engines()[0].options["target"] == "json:dumps"
    named.prepare()
    with pytest.raises(ConfigError, match="import it"):
        named()
    assert named.call({"anything": 1}) == Call(args={"anything": 1})
    with pytest.raises(ConfigError, match="there is no file"):
        Function("nowhere.py:f").prepare()
    settings = FunctionSettings(target="json:loads")
    assert Function.from_settings(settings, "app.yaml").settings is settings


def test_arguments_are_checked_before_they_are_queued():
    assert plain.call({"x": 1}) == Call(args={"x": 1})
    with pytest.raises(BadRequest, match=r"the function takes \(x:"):
        plain.call({"y": 1})


def test_whether_it_streams_is_learned_from_the_engine():
    named = Function("somewhere:generator")
    assert not named.streams
    named.ready(EngineInfo(batching="continuous", capacity={"slots": 1}, facts={"streams": True}))
    assert named.streams


def test_events_are_the_items():
    work = Work(id="a", payload={}, cost={}, arrival=0.0)
    items = plain.decoder(work)
    assert items.feed(Chunk(id="a", index=0, data=[1])).events == ([1],)
    assert items.feed(Chunk(id="a", index=1, data=None)).events == (None,)
    assert items.feed(Chunk(id="a", index=2, finish=Finish(reason="stop"))).events == ()
    assert items.usage() == {"items": 2.0}


@function
def numbers(to: int) -> Iterator[int]:
    yield from range(to)


@function
async def told() -> str:
    return "told"


async def test_what_is_decorated_runs_as_itself_when_it_is_named():
    """As an app file in YAML names it, or a worker finds it."""
    for decorated, streams, expected in ((numbers, True, [0, 1]), (told, False, ["told"])):
        named = Function(decorated.settings.target)
        engine = PythonEngine(**named.engines()[0].options)
        info = await engine.start()
        named.ready(info)
        assert named.streams is streams
        args = {"to": 2} if streams else {}
        work = Work(id="a", payload=named.call(args), cost={}, arrival=0.0)
        items = named.decoder(work)
        assert [event async for chunk in engine.run(work) for event in items.feed(chunk).events] == expected
        await engine.close()


def test_words_of_a_decorator_that_a_named_target_would_lose_are_refused(tmp_path: Path):
    (tmp_path / "f.py").write_text(
        "import foreserve as fs\n\n\n@fs.function(batch=8, max_running=4)\ndef f(x): ...\n\n\n"
        "@fs.function\ndef g(x): ...\n"
    )
    with pytest.raises(
        ConfigError, match=r"decorated with @function\(batch, max_running\).*say batch, max_running here"
    ):
        Function(f"{tmp_path}/f.py:f").check()
    with pytest.raises(ConfigError, match=r"say max_running here"):
        Function(f"{tmp_path}/f.py:f", batch=2).check()
    Function(f"{tmp_path}/f.py:f", batch=2, max_running=3).check()
    Function(f"{tmp_path}/f.py:g").check()


def test_a_target_is_checked_without_running_it(tmp_path: Path):
    file = tmp_path / "functions.py"
    file.write_text("def a(): ...\nb = 3\nfrom os import path as c\nraise SystemExit\n")
    for name in "abc":
        Function(f"{file}:{name}").check()
    with pytest.raises(ConfigError, match=r"has no 'x'.*valid: a, b, c"):
        Function(f"{file}:x").check()
    with pytest.raises(ConfigError, match="there is no file"):
        Function(f"{tmp_path}/other.py:x").check()
