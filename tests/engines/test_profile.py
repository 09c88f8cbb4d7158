"""Profiles: what a file may say, and what is wrong with it in words."""

import msgspec
import pytest

from foreserve.engines.profile import EngineProfile, checked, linear, load_profile
from foreserve.engines.simulated import SimulatedEngine


def test_a_profile_comes_from_a_file_from_plain_values_or_as_it_is(tmp_path):
    profile = linear(slots=3)
    (tmp_path / "p.json").write_bytes(msgspec.json.encode(profile))
    (tmp_path / "p.yaml").write_bytes(msgspec.yaml.encode(profile))
    assert load_profile(profile) is profile
    assert load_profile(str(tmp_path / "p.json")) == load_profile(tmp_path / "p.yaml") == profile
    assert load_profile(msgspec.to_builtins(profile)) == profile


def test_a_file_that_is_no_profile_is_named(tmp_path):
    (tmp_path / "p.json").write_text('{"slots": 3}')
    with pytest.raises(ValueError, match=r"p\.json is no profile of an engine: .*`kv_tokens`"):
        load_profile(tmp_path / "p.json")
    with pytest.raises(ValueError, match=r"nowhere\.yaml is no profile"):
        load_profile(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slots": 0}, "`slots`"),
        ({"kv_tokens": 3, "block_tokens": 4}, "must hold a block of 4"),
        ({"max_batched_tokens": 0}, "`max_batched_tokens`"),
        ({"mixing": -0.1}, "`mixing`"),
        ({"prefill": {"tokens": [8, 8], "before": [0], "seconds": [[0.1], [0.2]]}}, "`prefill.tokens` must rise"),
        ({"prefill": {"tokens": [8], "before": [0, 1], "seconds": [[0.1]]}}, "1 rows of 2"),
        ({"decode": {"sequences": [1], "context": [0], "seconds": [[float("nan")]]}}, "not be negative"),
    ],
)
def test_what_is_wrong_with_a_profile_is_told(change, words):
    plain = {**msgspec.to_builtins(linear()), **change}
    with pytest.raises(ValueError, match=words):
        checked(msgspec.convert(plain, EngineProfile))


def test_options_lower_a_profiles_bounds_and_set_nothing_else():
    info = SimulatedEngine(profile=linear(slots=8), slots=99, context_tokens=100).core.info()
    assert (info.capacity["slots"], info.facts["context_tokens"]) == (8.0, 100)
    with pytest.raises(ValueError, match="decode_s cannot be set beside a profile"):
        SimulatedEngine(profile=linear(), decode_s=1.0)
