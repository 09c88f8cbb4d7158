import msgspec
import pytest

from foreserve.elastic.setting import Merge, Plain, Prompts, Setting, by_tokens, parse_setting
from foreserve.errors import ConfigError


@pytest.mark.parametrize("setting", [Plain(), Merge(1), Merge(20), Prompts(8)])
def test_a_setting_is_read_as_it_is_spelled_and_crosses_a_process(setting: Setting) -> None:
    assert parse_setting(str(setting)) == setting
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(setting), type=Setting) == setting


@pytest.mark.parametrize(
    "word", ["", "plain:1", "merge", "merge:", "merge:0", "prompts:-2", "merge:1.5", "-8", "merge:²"]
)
def test_anything_else_is_an_error_that_tells_how(word: str) -> None:
    with pytest.raises(ConfigError):
        parse_setting(word)


def test_order_is_from_few_tokens_to_many() -> None:
    given = [Prompts(4), Plain(), Merge(8), Prompts(1), Merge(2)]
    assert sorted(given, key=by_tokens) == [Merge(8), Merge(2), Plain(), Prompts(1), Prompts(4)]
