import gzip
import lzma

import pytest

from foreserve.errors import ConfigError
from foreserve.loadgen import prompts


def test_prompts_and_messages_with_their_terms(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "one", "max_tokens": 5, "response": "ignored"}\n'
        '{"messages": [{"role": "system", "content": "two"}], "tenant": "t"}\n'
    )
    first, second = prompts.load(path)
    assert (first.as_text(), first.as_messages(), first.max_tokens) == (
        "one",
        [{"role": "user", "content": "one"}],
        5,
    )
    assert (second.as_messages(), second.tenant) == ([{"role": "system", "content": "two"}], "t")
    with pytest.raises(ConfigError, match="chat endpoint"):
        second.as_text()


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_compressed_files_are_read_up_to_the_limit(tmp_path, suffix, pack):
    path = tmp_path / f"p.jsonl{suffix}"
    path.write_bytes(pack(b"".join(b'{"prompt": "%d"}\n' % i for i in range(50))))
    assert [p.prompt for p in prompts.load(path, limit=3)] == ["0", "1", "2"]
    assert len(prompts.load(path)) == 50


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{no", "JSON is malformed"),
        (b'{"question": "x"}', "expected either `prompt` or `messages`"),
        (b'{"prompt": "x", "messages": []}', "expected either"),
        (b'{"prompt": ""}', "empty"),
        (b'{"prompt": 3}', "Expected `str | null`, got `int`"),
        (b'{"prompt": "x", "max_tokens": 0}', "at least 1"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
    ],
)
def test_a_malformed_line_is_an_error_with_its_number(tmp_path, line, says):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n\n' + line + b"\n")
    with pytest.raises(ConfigError) as caught:
        prompts.load(path)
    assert str(caught.value).startswith(f"{path}: line 3: ")
    assert says in str(caught.value)


def test_a_missing_or_empty_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        prompts.load(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ConfigError, match="no prompts"):
        prompts.load(tmp_path / "empty.jsonl")


def test_the_built_in_prompts_are_varied():
    own = prompts.built_in()
    assert len({p.prompt for p in own}) == len(own) >= 20
    limits = [p.max_tokens for p in own]
    assert min(limits) < 20 < 200 < max(limits)
