"""The page about pipelines: its code runs, and what it says that an error says is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from foreserve.clock import now
from foreserve.core import Request

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pipelines.md"


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What all code of the page, in its order, defines; a file, so that a worker could import it."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    file = tmp_path_factory.mktemp("page") / "page.py"
    file.write_text(code)
    found: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, str(file), "exec"), found)
    return found


def test_what_does_not_fit_is_told_as_the_page_says(names: dict[str, Any]):
    fs = names["fs"]
    with pytest.raises(Exception, match="takes str") as error:
        fs.pipeline(lambda question: names["shorter"](names["write"](question).split(fs.lines)))
    assert str(error.value).replace("`", "'") in PAGE.read_text()


async def test_its_pipelines_run(names: dict[str, Any]):
    assert await names["fan_out"]("a\nb") == ["0 A", "1 B"]
    assert await names["shorter"]("x" * 30) == "x" * 20
    running = names["fs"].App(chat=names["chat"], checked=names["checked"], state={"history": False}).run()
    await running.start()
    request = Request(id="r", service="checked", payload=None, arrival=now())
    result = await running.pipelines["checked"].submit(request, {"question": "?"}, listens=False).result()
    assert set(result) == {"answer", "verdicts"}
    assert all(re.search(r": \d+ searches$", verdict, re.DOTALL) for verdict in result["verdicts"])
    await running.stop(1.0)
    running.ledger.check(idle=True)
