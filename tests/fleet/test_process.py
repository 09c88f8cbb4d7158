import asyncio
import logging
import sys

import pytest

from foreserve.fleet.process import SpawnedProcess, WorkerProcess, environment, how_it_ended


async def _run(code: str) -> tuple[WorkerProcess, int]:
    ended = asyncio.get_running_loop().create_future()
    process = SpawnedProcess("w", [sys.executable, "-c", code], environment({}, False), ended.set_result)
    await process.log_output()
    returncode = await asyncio.wait_for(ended, 30)
    await asyncio.sleep(0.05)
    process.close()
    return process, returncode


async def test_lines_are_logged_at_their_level_and_the_last_are_kept(caplog):
    caplog.set_level(logging.DEBUG)
    process, returncode = await _run(
        "import sys; print('WARNING engine: hot'); print('plain'); print('10%\\r20%'); print();"
        "sys.stdout.buffer.write(b'\\xff no newline'); sys.exit(4)"
    )
    assert returncode == 4
    assert [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "foreserve.worker"] == [
        ("WARNING", "[w] engine: hot"),
        ("INFO", "[w] plain"),
        ("INFO", "[w] 10%"),
        ("INFO", "[w] 20%"),
        ("INFO", "[w] \ufffd no newline"),
    ]
    assert process.last_words(2) == "20% | \ufffd no newline"


async def test_what_is_kept_is_bounded(caplog):
    caplog.set_level(logging.CRITICAL)
    process, _ = await _run("print('x' * 1_000_000); [print(i) for i in range(1000)]")
    assert process.last_words(100).split(" | ") == [str(number) for number in range(936, 1000)]


async def test_the_last_words_of_a_crash_are_where_it_happened(caplog):
    caplog.set_level(logging.CRITICAL)
    code = "def outer():\n    inner()\ndef inner():\n    ctypes.string_at(0)\nimport ctypes, faulthandler, sys\n"
    process, returncode = await _run(code + "faulthandler.enable()\nprint('before')\nouter()")
    assert how_it_ended(returncode) == "killed by SIGSEGV"
    words = process.last_words().split(" | ")
    assert words[0] == "Fatal Python error: Segmentation fault"
    assert len(words) == 4


async def test_ordinary_lines_of_its_log_are_no_last_words(caplog):
    caplog.set_level(logging.CRITICAL)
    process, _ = await _run("print('ERROR a: no room'); print('INFO b: loaded'); print('DEBUG c: x'); print('ends')")
    assert process.last_words() == "ERROR a: no room | ends"


async def test_signals_after_the_end_do_nothing():
    process, returncode = await _run("import os; os.kill(os.getpid(), 11)")
    assert how_it_ended(returncode) == "killed by SIGSEGV"
    process.kill()
    process.terminate()


async def test_an_interpreter_that_cannot_be_run():
    with pytest.raises(FileNotFoundError):
        SpawnedProcess("w", ["/nowhere/python"], {}, lambda _: None)


def test_environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    ours = environment({"A": "b"}, foreign=False)
    assert (ours["PYTHONPATH"], ours["OMP_WAIT_POLICY"], ours["A"]) == ("/ours", "ACTIVE", "b")
    assert "PYTHONPATH" not in environment({}, foreign=True)
    assert environment({"PYTHONPATH": "/theirs"}, foreign=True)["PYTHONPATH"] == "/theirs"
