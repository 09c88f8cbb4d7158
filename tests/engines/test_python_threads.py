"""A thread that is told to stop at whatever moment: it stops or it does not, and its pool lives on."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from foreserve.engines.python_threads import Run, Stopped
from foreserve.engines.python_values import Raised


def test_code_is_stopped_and_its_own_handlers_of_errors_do_not_hold_it_up():
    running = threading.Event()

    def stubborn() -> None:
        running.set()
        while True:
            try:
                while True:
                    pass
            except Exception:
                pass

    run = Run()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, stubborn)
        running.wait(10)
        run.stop()
        found = future.result(10)
    assert isinstance(found, Raised)
    assert isinstance(found.error, Stopped)


def test_told_about_when_it_ends_the_pools_thread_never_dies_of_it():
    """The telling races with the end, over and over; each run gives its result or says that it was stopped."""
    with ThreadPoolExecutor(1) as pool:
        for n in range(300):
            run, begun = Run(), threading.Event()

            def short(begun: threading.Event = begun, n: int = n) -> int:
                begun.set()
                return sum(range(n % 50))

            future = pool.submit(run, short)
            begun.wait(10)
            run.stop()
            found = future.result(10)
            assert found == sum(range(n % 50)) or isinstance(found.error, Stopped)
        assert pool.submit(lambda: "alive").result(10) == "alive"


def test_nothing_is_stopped_that_does_not_run():
    run = Run()
    run.stop()
    assert run(lambda: 1) == 1
    run.stop()
    assert run(lambda: 2) == 2
