"""A Ray cluster of two nodes in network namespaces of their own, joined by a link that can be cut."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

RAY = str(Path(sys.executable).with_name("ray"))
PORT = 6399


class Node:
    """One namespace with its processes."""

    def __init__(self, name, address):
        self.name = name
        self.address = address
        self.processes = []

    def start(self, *command, **words):
        """A process in it, in a group of its own."""
        process = subprocess.Popen(["ip", "netns", "exec", self.name, *command], start_new_session=True, **words)
        self.processes.append(process)
        return process

    def end(self):
        for process in reversed(self.processes):
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(10)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)

    def pids(self):
        """Of all processes in it."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(word) for word in found.stdout.split()]

    def kill(self, what):
        """Those of its processes whose program is called so, at once. How many there were."""
        killed = 0
        for pid in self.pids():
            try:
                program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
            except OSError:
                continue
            if program.decode().rpartition("/")[2] == what:
                os.kill(pid, signal.SIGKILL)
                killed += 1
        return killed

    def cut(self):
        """Nothing comes to it or leaves it any more."""
        _ip("-n", self.name, "link", "set", "eth0", "down")


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def require_namespaces():
    """Skip where this process may make none."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the program `ip`")
    name = f"fs-try-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")


@contextmanager
def two_nodes(folder):
    """The head, with one CPU, and another node with one CPU, both up."""
    require_namespaces()
    names = [f"fs-{which}-{os.getpid()}" for which in ("head", "far")]
    nodes = [Node(name, f"10.213.7.{number}") for number, name in enumerate(names, 1)]
    with ExitStack() as stack:
        for node in nodes:
            _ip("netns", "add", node.name)
            stack.callback(_ip, "netns", "del", node.name)
            stack.callback(node.end)
            _ip("-n", node.name, "link", "set", "lo", "up")
        _ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for node in nodes:
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", "eth0")
            _ip("-n", node.name, "link", "set", "eth0", "up")
        head, far = nodes
        common = ("--num-cpus=1", "--object-store-memory=100000000", "--block", "--disable-usage-stats")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        head.start(
            RAY, "start", "--head", f"--port={PORT}", f"--node-ip-address={head.address}", "--include-dashboard=false",
            f"--temp-dir={folder}", *common, **quiet,
        )  # fmt: skip
        _until_there(head, 1)
        far.start(
            RAY, "start", f"--address={head.address}:{PORT}", f"--node-ip-address={far.address}", *common, **quiet
        )
        _until_there(head, 2)
        yield head, far


def _until_there(head, count):
    """Until the head tells of so many living nodes."""
    where = f"address='{head.address}:{PORT}', _node_ip_address='{head.address}', logging_level='ERROR'"
    code = f"import ray; ray.init({where}); print('nodes', sum(n['Alive'] for n in ray.nodes()))"
    for _ in range(8):
        command = ["ip", "netns", "exec", head.name, sys.executable, "-c", code]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if f"nodes {count}" in found.stdout:
            return
        time.sleep(1.0)
    raise RuntimeError(f"no {count} nodes came up: {found.stdout}{found.stderr[-2000:]}")
