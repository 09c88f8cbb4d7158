import pytest

from foreserve.traces.mooncake import open_mooncake, parse


def test_milliseconds_lengths_and_whole_blocks():
    row = parse('{"timestamp": 1500, "input_length": 1030, "output_length": 6, "hash_ids": [7, 8, 9]}')
    assert (row.arrival, row.input_tokens, row.output_tokens, row.prefix) == (1.5, 1030, 6, (7, 8))


@pytest.mark.parametrize(("length", "blocks"), [(511, 0), (512, 1), (1023, 1), (1024, 2)])
def test_a_block_that_is_not_full_has_no_hash(length, blocks):
    ids = list(range(-(-length // 512)))
    row = parse(f'{{"timestamp": 0, "input_length": {length}, "output_length": 1, "hash_ids": {ids}}}')
    assert len(row.prefix) == blocks


def test_the_block_size_is_in_the_header(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 1, "output_length": 1}\n')
    trace = open_mooncake(path)
    assert (trace.header.block_tokens, trace.header.name) == (512, "chat")
    assert len(list(trace)) == 1
