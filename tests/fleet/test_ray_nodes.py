"""A node that dies, and one that is cut off, under load: every request has one outcome, and the rest goes on."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ray_cluster import MARKS
from tests.ray_nodes import PORT, two_nodes

pytestmark = [pytest.mark.timeout(180), *MARKS]  # the first bound counts

ROOT = Path(__file__).parents[2]

APP = """
import foreserve as fs
app = fs.App(
    chat=fs.LLM("simulated", replicas=2, max_running=8, ray={"cpus": 1}, liveness_s=4.0),
    state={"history": False},
)
"""

CLIENT = """
import asyncio, collections, json, sys
import httpx

async def ask(client, tokens):
    words = {"model": "chat", "prompt": "Say hello.", "max_tokens": tokens, "stream": True}
    last = "cut"
    try:
        async with client.stream("POST", "/v1/completions", json=words) as answer:
            if answer.status_code != 200:
                return f"status {answer.status_code}"
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    last = "done" if line == "data: [DONE]" else "error" if '"error"' in line else last
                    print("chunk", flush=True) if tokens > 100 else None
    except httpx.HTTPError as error:
        return type(error).__name__
    return last

async def main():
    async with httpx.AsyncClient(base_url=sys.argv[1], timeout=60) as client:
        count, tokens = int(sys.argv[2]), int(sys.argv[3])
        told = await asyncio.gather(*(ask(client, tokens) for _ in range(count)))
        status = (await client.get("/v1/foreserve/status")).json()
        print(json.dumps({"told": collections.Counter(told), "status": status}), flush=True)

asyncio.run(main())
"""


@pytest.fixture
def nodes(tmp_path_factory):
    with two_nodes(tmp_path_factory.mktemp("r")) as found:
        yield found


def client(head, count, tokens):
    """Streams from inside the gateway's namespace."""
    url = "http://127.0.0.1:8000"
    return head.start(
        sys.executable,
        "-c",
        CLIENT,
        url,
        str(count),
        str(tokens),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_line(process, limit_s=60):
    out, err = process.communicate(timeout=limit_s)
    lines = out.strip().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {"told": {"no answer": 1}, "err": err}


@pytest.fixture
def gateway(nodes, tmp_path):
    head, _ = nodes
    app = tmp_path / "app.py"
    app.write_text(APP)
    foreserve = str(Path(sys.executable).with_name("foreserve"))
    with (tmp_path / "log").open("w") as log:
        process = head.start(
            foreserve,
            "serve",
            str(app),
            "--on",
            f"ray://{head.address}:{PORT}",
            "--port",
            "8000",
            stdout=log,
            stderr=log,
            cwd=ROOT,
        )
    found = {}
    for _ in range(30):
        if process.poll() is None and len(ready(found := last_line(client(head, 1, 5)))) == 2:
            return head
        time.sleep(1.0)
    pytest.fail(f"two replicas are not ready: {found}\n{(tmp_path / 'log').read_text()[-3000:]}")


def ready(found):
    services = found.get("status", {}).get("services", [])
    services = services.values() if isinstance(services, dict) else services
    return [one for service in services for one in service["replicas"] if one["state"] == "ready"]


@pytest.mark.parametrize("how", ["its raylet is killed", "its link is cut"])
def test_a_node_is_lost_under_load(nodes, gateway, how):
    head, far = nodes
    streams = client(head, 12, 400)
    assert streams.stdout.readline() == "chunk\n"
    if how == "its link is cut":
        far.cut()
    else:
        assert far.kill("raylet") == 1
    told = last_line(streams)["told"]
    assert sum(told.values()) == 12
    assert set(told) <= {"done", "error"}  # nobody was cut off or waits
    later = last_line(client(head, 6, 20))
    assert later["told"] == {"done": 6}
    assert len(ready(later)) == 1
