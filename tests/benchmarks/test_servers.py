import os
import sys
import time

import pytest
from benchmarks import servers

WITH_CHILD = """
import http.server, signal, subprocess, sys
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def gone(pid):
    """Ended, or ended and not yet collected."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_server_runs_on_its_cores_and_leaves_nothing_behind():
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    port = servers.free_port()
    with servers.running([sys.executable, "-c", WITH_CHILD, str(port)], port, ready="/", cores={core}) as server:
        assert os.sched_getaffinity(server.pid) == {core}
        assert os.sched_getaffinity(0) == before
        (child,) = server.children()
        servers.pin(child, before)
        assert os.sched_getaffinity(child) == before
    for _ in range(100):
        if gone(server.pid) and gone(child):
            break
        time.sleep(0.05)
    assert gone(server.pid)
    assert gone(child), "a child that ignores SIGTERM, in a session of its own, is ended as well"


def test_a_server_that_ends_at_once_tells_its_log():
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(servers.ServerFailed, match="no such model"), servers.running(command, servers.free_port()):
        pass


def test_a_server_that_is_never_ready_is_given_up():
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        pytest.raises(servers.ServerFailed, match=r"not ready within 0\.3 s"),
        servers.running(command, servers.free_port(), limit_s=0.3),
    ):
        pass
