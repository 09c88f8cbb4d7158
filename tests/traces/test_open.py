import gzip
import lzma

import pytest

from foreserve.errors import ConfigError
from foreserve.traces.open import FORMATS, open_trace

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n"
    "2023-11-16 18:15:48.6805900,5,6\n"
)
OURS = '{"foreserve_trace":1,"name":"mine","epoch":12.5,"block_tokens":32}\n{"arrival":1,"input_tokens":7}\n'
MOONCAKE = '{"timestamp": 1500, "input_length": 1030, "output_length": 6, "hash_ids": [1, 2, 3]}\n'
VIDUR = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n12,5,17,2.4\n30.0,1,31,30\n"


def write(path, text):
    data = text.encode()
    if path.suffix == ".xz":
        data = lzma.compress(data)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("packed", ["", ".xz", ".gz"])
@pytest.mark.parametrize(
    ("text", "rows"), [(AZURE, [(374, 44), (5, 6), (396, 109)]), (OURS, [(7, 0)]), (MOONCAKE, [(1030, 6)])]
)
def test_a_format_is_told_by_its_content_whatever_the_file_is_called(tmp_path, text, rows, packed):
    trace = open_trace(write(tmp_path / f"file{packed}", text))
    assert [(row.input_tokens, row.output_tokens) for row in trace] == rows
    assert [(row.input_tokens, row.output_tokens) for row in trace] == rows  # as often as one likes


def test_lengths_alone_need_a_rate(tmp_path):
    path = write(tmp_path / "l.csv", VIDUR)
    with pytest.raises(ConfigError, match=r"lengths without arrivals.*--per-second"):
        open_trace(path)
    assert [(row.input_tokens, row.output_tokens) for row in open_trace(path, rate=2.0)] == [(12, 5), (30, 1)]


def test_what_is_no_trace_says_what_one_looks_like(tmp_path):
    path = write(tmp_path / "x.csv", "when,what\n1,2\n")
    with pytest.raises(ConfigError) as caught:
        open_trace(path)
    for name, looks in FORMATS.items():
        assert name in str(caught.value)
        assert looks in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "options", "says"),
    [
        ("a", AZURE, {"format": "azur"}, "no trace format is called 'azur'; did you mean 'azure'"),
        ("a", AZURE, {"format": "vidur"}, "line 1: columns are 'TIMESTAMP"),
        ("a", VIDUR, {"format": "azure"}, "line 1: columns are 'num_prefill"),
        ("a", VIDUR, {"rate": 0.0}, "arrivals a second are 0.0"),
        ("a", VIDUR, {"rate": 1.0, "seed": -1}, "seed is -1"),
        ("a", "\n\n", {}, "the file is empty"),
        ("a.xz", "", {}, "the file is empty"),
    ],
)
def test_what_is_wrong_is_said_in_words(tmp_path, name, text, options, says):
    with pytest.raises(ConfigError, match=says):
        list(open_trace(write(tmp_path / name, text), **options))


def test_a_folder_without_a_trace(tmp_path):
    with pytest.raises(ConfigError, match=r"a folder without a trace.*chunk-N-trace\.csv"):
        open_trace(tmp_path)


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        open_trace(tmp_path / "none.jsonl")
