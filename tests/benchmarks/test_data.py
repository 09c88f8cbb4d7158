import lzma

from benchmarks import data
from benchmarks.common import Report

from foreserve.loadgen.arrivals import trace


def test_without_the_data_our_own_prompts_are_used_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("FORESERVE_DATA", str(tmp_path / "none"))
    report = Report("sample", {})
    samples = data.samples("sharegpt", 45, report)
    assert len(samples) == 45
    assert samples[0] == samples[20] != samples[1]
    assert "built-in" in report.notes[0]
    assert data.trace("azure_conv") is None


def test_samples_are_drawn_with_a_seed_and_bounded_in_length(tmp_path, monkeypatch):
    monkeypatch.setenv("FORESERVE_DATA", str(tmp_path))
    file = tmp_path / data.SOURCES["sharegpt"][0]
    file.parent.mkdir(parents=True)
    rows = [f'{{"id": "{n}", "prompt": "{n:03d}{"x" * n}", "response": "r{n}"}}\n' for n in range(100)]
    file.write_bytes(lzma.compress("".join(rows).encode()))
    report = Report("sample", {})
    first, again, other = (data.samples("sharegpt", 10, report, seed=s, max_chars=53) for s in (1, 1, 2))
    assert first == again != other
    assert len({sample.prompt for sample in first}) == 10
    assert max(len(sample.prompt) for sample in data.samples("sharegpt", 1000, report, max_chars=53)) == 53
    assert all(sample.response == f"r{int(sample.prompt[:3])}" for sample in first)
    assert first[0].as_prompt(9).max_tokens == 9


def test_a_trace_is_found_and_read(tmp_path, monkeypatch):
    monkeypatch.setenv("FORESERVE_DATA", str(tmp_path))
    file = tmp_path / data.TRACES["azure_code"]
    file.parent.mkdir(parents=True)
    file.write_bytes(lzma.compress(b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n"))
    found = data.trace("azure_code")
    assert found is not None
    assert trace(found)[0].output_tokens == 10
