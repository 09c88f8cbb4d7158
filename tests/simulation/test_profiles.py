from pathlib import Path

import msgspec
import pytest

from foreserve.engines.profile import DecodeTable, EngineProfile, PrefillTable, linear
from foreserve.errors import ConfigError
from foreserve.simulation.profiles import dump, profile_file, profile_for, read_profile, rounded, save_profile

PROFILE = EngineProfile(
    name="smollm2 (openvino)",
    machine="two cores",
    measured="2026-11-20",
    slots=8,
    kv_tokens=43_584,
    context_tokens=8192,
    prefill=PrefillTable(tokens=[32, 512], before=[0, 1024], seconds=[[0.0123456, 0.0212345], [0.21, 0.33]]),
    decode=DecodeTable(sequences=[1, 8], context=[32, 2048], seconds=[[0.00987654, 0.0111], [0.021, 0.0345]]),
    max_batched_tokens=512,
    mixing=0.8771,
    prefix_caching=True,
    start_s=2.3456,
    overhead_s=0.0000123456,
    host_bytes=1_234_567_890,
    spread={"start_s": [2.21, 2.51]},
    notes=["a note: with a colon", "# no comment"],
)


def test_what_is_written_is_read_again(tmp_path: Path):
    file = profile_file("chat", tmp_path)
    save_profile(PROFILE, file)
    expected = msgspec.convert(rounded(msgspec.to_builtins(PROFILE)), EngineProfile)
    assert profile_for("chat", tmp_path) == expected
    save_profile(expected, file)
    assert read_profile(file) == expected


def test_it_is_small_and_tells_what_it_is():
    text = dump(PROFILE)
    assert text.startswith("# ")
    assert "foreserve calibrate" in text.splitlines()[0]
    assert "- [0.0123, 0.0212]" in text
    assert len(text.splitlines()) < 45


def test_no_profile_is_none_and_slashes_stay_within_the_folder(tmp_path: Path):
    assert profile_for("chat", tmp_path) is None
    assert profile_file("team/chat", tmp_path).parent == tmp_path / "profiles"
    assert profile_file("../chat", tmp_path).parent == tmp_path / "profiles"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("slots: 8", "slotz: 8"),
        ("slots: 8", "slots: 0"),
        ("slots: 8\n", ""),
        ("tokens: [32, 512]", "tokens: [512, 32]"),
        ("tokens: [32, 512]", "tokens: [32]"),
        ("context: [32, 2048]", "context: [32]"),
        ("- [0.0123, 0.0212]", "- [0.0123, -1.0]"),
        ("format: 1", "format: 2"),
        ("mixing: 0.877", "mixing: .nan"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, change: str, words: str):
    file = tmp_path / "bad.yaml"
    text = dump(PROFILE)
    assert change in text
    file.write_text(text.replace(change, words))
    with pytest.raises(ConfigError) as error:
        read_profile(file)
    assert str(error.value).startswith(str(file))
    key = (words or change).split(":")[0].strip()
    assert "seconds" in str(error.value) or key in str(error.value)


def test_an_unknown_key_is_told_with_the_valid_ones_and_its_line(tmp_path: Path):
    file = tmp_path / "bad.yaml"
    file.write_text(dump(PROFILE).replace("slots: 8", "slotz: 8"))
    with pytest.raises(ConfigError, match=r"bad.yaml, line \d+: slotz: unknown key.*did you mean 'slots'\?.*kv_tokens"):
        read_profile(file)


@pytest.mark.parametrize("text", ["", "- 1", "slots: [", "no"])
def test_files_that_are_no_profile(tmp_path: Path, text: str):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read_profile(file)


def test_the_linear_profile_can_be_written(tmp_path: Path):
    save_profile(linear(), tmp_path / "deep" / "linear.yaml")
    assert read_profile(tmp_path / "deep" / "linear.yaml").slots == 16


def test_the_profile_that_the_documentation_explains_is_one(tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text()
    file = tmp_path / "chat.yaml"
    file.write_text(page.split("```yaml\n")[1].split("```")[0])
    explained = read_profile(file)
    told = set(file.read_text().replace(":", " ").split())
    assert {field.name for field in msgspec.structs.fields(EngineProfile)} <= told
    assert explained.slots == 8
