from pathlib import Path
from typing import Any

import msgspec
import pytest

from foreserve.app import App
from foreserve.core import Chunk, EngineInfo, Request, Work
from foreserve.elastic.batching import Elastic
from foreserve.elastic.payload import Encode, Vector
from foreserve.elastic.profile import Profile
from foreserve.errors import BadRequest, ConfigError
from foreserve.preflight import check
from foreserve.services.encoder import Encoder
from foreserve.services.encoder_plans import Allowed, Terms
from tests.elastic import folders

PROFILE = Profile(
    sizes=(1, 4),
    lengths=(8, 20),
    seconds={
        "merge:2": ((0.1, 0.2), (0.2, 0.4)),
        "plain": ((0.2, 0.4), (0.4, 0.8)),
        "prompts:2": ((0.3, 0.5), (0.5, 1.0)),
    },
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("encoder")
    for name in ("words", "pairs", "images"):
        (base / name).mkdir()
    folders.sentences(base / "words")
    folders.cross(base / "pairs")
    folders.vision(base / "images")
    folders.task(base / "tasks" / "mood", ["bad", "good"], {"merge:2": 0.7, "plain": 0.8, "prompts:2": 0.9}, (2,))
    return base


@pytest.fixture(autouse=True)
def budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no loop here to ask for the time."""
    monkeypatch.setattr("foreserve.services.encoder.calibrated", lambda clock: 700)


def ready(base: Path, name: str = "words", **words: Any) -> Encoder:
    kind = Encoder(str(base / name), **words)
    kind.prepare()
    facts = {"profile": msgspec.to_builtins(PROFILE), "fidelity": {"merge:2": 0.95, "plain": 1.0}}
    kind.ready(EngineInfo(batching="static", capacity={"slots": 4.0}, facts=facts))
    return kind


def request(payload: Encode, about: Allowed | None = None) -> Request:
    return Request(id="a", service="s", payload=payload, arrival=0.0, about=about)


def test_its_engine_gets_what_the_folder_says_and_maps_the_weights(base: Path) -> None:
    kind = Encoder(str(base / "words"), elastic=["merge:2"], tasks=str(base / "tasks"), replicas=2)
    one, other = kind.engines()
    assert one == other
    assert one.options["settings"] == ["merge:2", "plain", "prompts:2"]
    assert one.weights[0].source == str(base / "words" / "model.safetensors")
    assert one.options["shared_weights"] == [one.weights[0].name]
    assert "profile" not in one.options
    assert all(ids[0] == 2 for ids in one.options["samples"])
    assert not Encoder(str(base / "words"), weights="bf16").engines()[0].weights  # they would have to be converted


def test_what_it_needs_is_told_before_it_starts(base: Path) -> None:
    kind = Encoder(str(base / "words"))
    assert kind.memory_bytes() == (base / "words" / "model.safetensors").stat().st_size
    assert all(finding.ok for finding in check(App(words=kind)) if finding.what.startswith("words"))


def test_what_the_first_worker_measured_reaches_the_policy_and_the_others(base: Path) -> None:
    kind = ready(base, elastic=["merge:2"], policy_options={"wait_s": 0.5})
    assert kind.settings.policy_options["wait_s"] == 0.5
    assert kind.settings.policy_options["budget"] == 700
    profile = msgspec.convert(kind.settings.policy_options["profile"], Profile)
    assert profile == PROFILE
    Elastic(**{**kind.settings.policy_options, "profile": profile})
    assert kind.engines()[0].options["profile"] == msgspec.to_builtins(PROFILE)


def test_another_policy_keeps_its_options(base: Path) -> None:
    kind = ready(base, policy="deferred", policy_options={"wait_s": 0.5})
    assert kind.settings.policy_options == {"wait_s": 0.5}


def test_a_price_is_in_tokens_and_foresees_the_seconds_of_what_may_serve(base: Path) -> None:
    kind = ready(base, elastic=["merge:2"])
    payload = kind.texts(["a b c"], "input")[0]
    price = kind.price(request(payload, kind.about(payload, Terms(elastic=True))))
    assert price.cost == {"slots": 1.0, "tokens": 5.0}
    assert price.plans == {"plain": 1.0, "merge:2": 0.95}
    assert price.forecast is not None
    assert (price.forecast.seconds, price.forecast.least_seconds) == (0.2, 0.1)


def test_embeddings_are_plain_unless_asked_for_or_always_elastic(base: Path) -> None:
    kind = ready(base, elastic=["merge:2"])
    payload = kind.texts(["a"], "input")[0]
    assert kind.about(payload).plans == {"plain": 1.0}
    assert kind.about(payload, Terms(setting="merge:2")).plans == {"merge:2": 0.95}
    assert kind.about(payload, Terms(elastic=True, min_accuracy=0.96)).plans == {"plain": 1.0}
    always = ready(base, elastic=["merge:2"], elastic_always=True)
    assert always.about(payload).plans == {"plain": 1.0, "merge:2": 0.95}


def test_a_task_is_served_by_its_own_settings(base: Path) -> None:
    kind = ready(base, tasks=str(base / "tasks"))
    payload = Encode(ids=[2, 4, 3], task="mood")
    assert kind.about(payload).plans == {"merge:2": 0.7, "plain": 0.8, "prompts:2": 0.9}
    assert kind.about(payload, Terms(min_accuracy=0.75)).plans == {"plain": 0.8, "prompts:2": 0.9}
    with pytest.raises(BadRequest, match=r"prompts:2, is expected to reach 0\.900"):
        kind.about(payload, Terms(min_accuracy=0.91))
    with pytest.raises(BadRequest, match="merge:3"):
        kind.about(payload, Terms(setting="merge:3"))


def test_its_decoder_tells_the_setting_and_the_accuracy(base: Path) -> None:
    kind = ready(base)
    work = Work(id="a", payload=Encode(ids=[2, 4, 3]), cost={}, arrival=0.0, plans={"merge:2": 0.7})
    decoder = kind.decoder(work)
    crossed = msgspec.msgpack.decode(msgspec.msgpack.encode(Vector(data=b"0000", setting="merge:2")))
    found = decoder.feed(Chunk(id="a", index=0, data=crossed)).events[0]
    assert (found.encoding.setting, found.encoding.expected, found.encoding.tokens) == ("merge:2", 0.7, 3)
    assert not decoder.feed(Chunk(id="a", index=1)).events
    assert decoder.usage() == {"prompt_tokens": 3.0}


def test_the_only_task_is_meant_where_none_is_named(base: Path) -> None:
    kind = ready(base, tasks=str(base / "tasks"))
    from foreserve.tensors import tensor_of

    assert kind.infer({"text": tensor_of(["a"])}).task == "mood"
    assert kind.infer({"text": tensor_of(["a"]), "task": tensor_of([""])}).task == ""
    with pytest.raises(BadRequest, match="no task 'mod'"):
        kind.infer({"text": tensor_of(["a"]), "task": tensor_of(["mod"])})


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("nowhere", {}, "no model"),
        ("words", {"elastic": ["merge:0"]}, "merge:R"),
        ("words", {"elastic": ["prompts:2"]}, "merge:R"),
        ("words", {"elastic_always": True}, "names no setting"),
        ("images", {"elastic": ["merge:2"]}, "a task brings its own"),
        ("words", {"tasks": "nothing"}, "no folder"),
        ("words", {"max_running": 0}, "max_running"),
        ("words", {"pooling": "cls"}, "pooling"),
    ],
)
def test_what_cannot_be_served_is_told_before_it_starts(
    base: Path, name: str, words: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        Encoder(str(base / name), **words).check()


def test_images_are_no_texts(base: Path) -> None:
    with pytest.raises(BadRequest, match="reads images"):
        ready(base, "images").texts(["a"], "input")
