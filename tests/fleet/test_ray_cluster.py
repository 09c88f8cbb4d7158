import subprocess
import sys

import pytest

from foreserve.app import App
from foreserve.errors import ConfigError
from foreserve.fleet import ray_cluster
from foreserve.services.llm import LLM


def test_nothing_of_foreserve_imports_ray_before_it_is_asked_for():
    code = "import sys, foreserve.cli.serve, foreserve.wiring, foreserve.fleet.ray; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    app = App(chat=LLM("simulated"), cluster={"on": "ray"}, state={"history": False})
    with pytest.raises(ConfigError, match=r"pip install 'foreserve\[ray\]'"):
        app.run()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"on": "rey"}, "did you mean 'ray'"),
        ({"address": "10.0.0.1:6379"}, "`on` is not `ray`"),
        ({"on": "ray", "address": "ray://10.0.0.1"}, "valid: auto, or the head's as in 10.0.0.1:6379"),
        ({"on": "ray", "place_s": 0}, "place_s"),
    ],
)
def test_wrong_settings_are_told(words, told):
    with pytest.raises(ConfigError, match=told):
        App(chat=LLM("simulated"), cluster=words)


@pytest.mark.parametrize("words", [{"cpus": -1}, {"gpus": 1.5}, {"resources": {"GPU": 1}}, {"resources": {"tpu": 0}}])
def test_wrong_demands_are_told(words):
    with pytest.raises(ConfigError, match=next(iter(words))):
        LLM("simulated", ray=words)
