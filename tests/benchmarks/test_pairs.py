import io
import json
import lzma
import tarfile

import pytest
from benchmarks import pairs as readers
from benchmarks.pairs import INSTRUCTIONS, available, conversations, lengths, pairs, split


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of the shape of the real one, a few rows each."""
    monkeypatch.setenv("FORESERVE_DATA", str(tmp_path))
    monkeypatch.setenv("FORESERVE_CACHE", str(tmp_path / "cache"))

    def jsonl(place, rows):
        file = tmp_path / "prompts" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(lzma.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))

    def archive(name, files):
        with tarfile.open(tmp_path / "prompts/apps" / f"{name}.tar.xz", "w:xz") as tar:
            for file, lines in files.items():
                info = tarfile.TarInfo(f"{name}/{file}")
                info.size = len(text := "".join(line + "\n" for line in lines).encode())
                tar.addfile(info, io.BytesIO(text))

    code = [{"code": f"int f{n} ( ) {{ }}", "nl": f"gives {n} concode_field_sep int x"} for n in range(5)]
    jsonl("apps/code_comment/concode_dev.json.xz", [*code, {"code": "", "nl": "empty"}])
    jsonl("apps/code_comment/concode_test.json.xz", [])
    toxic = "toxic\tneutral1\n" + "".join(f"bad {n}\tgood {n}\n" for n in range(9))
    (tmp_path / "prompts/apps/paradetox.tsv.xz").write_bytes(lzma.compress(toxic.encode()))
    archive("jfleg", {"dev.src": ["he go"] * 3, "dev.ref0": ["he goes"] * 3, "test.src": ["a"], "test.ref0": ["b"]})
    archive("code_translation", {f"train.{end}": [f"{end} {n}" for n in range(6)] for end in ("java", "cs")})
    archive("bug_fix", {f"{size}_test.{end}": ["x"] * 4 for size in ("small", "medium") for end in ("buggy", "fixed")})
    archive("translation_docs", {f"da-en.dev.{end}": ["hej", "farvel"] * 3 for end in ("da", "en")})
    chats = [{"id": f"c{n}_0", "prompt": f"q{n}", "response": "r " * n} for n in range(600)]
    jsonl("sharegpt/sharegpt_first_turn_6000.jsonl.xz", chats)
    said = [{"from": who, "value": who} for who in ("gpt", "human", "gpt", "human", "gpt", "gpt")]
    jsonl("sharegpt/sharegpt_multiturn_1000.jsonl.xz", [{"conversations": said}, {"conversations": said[:2]}])
    p3 = [{"app": "a", "template": "t", "prompt": f"Answer the question: {n}", "completion": "yes<|endoftext|>"}
          for n in range(4)]  # fmt: skip
    jsonl("p3_t0/p3_t0_all_55185.jsonl.xz", p3)
    for part in ("train", "test"):
        jsonl(f"gsm8k/{part}.jsonl.xz", [{"question": part, "answer": "4"}])
    return tmp_path


def test_the_six_applications_come_balanced_with_their_instructions(data):
    found = pairs("apps")
    assert len(found) == 6 * 4
    assert {pair.app for pair in found} == set(INSTRUCTIONS)
    assert all(pair.instruction == INSTRUCTIONS[pair.app] and pair.text and pair.response for pair in found)
    assert {pair.response[:5] for pair in found if pair.app == "code_comment"} == {"gives"}
    assert pairs("apps", 10) == found[:10] != pairs("apps", 10, seed=1)
    assert available("apps")
    assert not readers._usable(found[0].__class__("", "", "asked", " ", "answer", ""))


def test_other_sources(data):
    assert {pair.instruction for pair in pairs("p3")} == {"Answer the question:"}
    assert {(pair.text, pair.response) for pair in pairs("p3")} == {(str(n), "yes") for n in range(4)}
    assert {pair.prompt for pair in pairs("gsm8k")} == {"train", "test"}
    assert len(pairs("sharegpt")) == 599
    assert [turn["role"] for chat in conversations() for turn in chat] == ["user", "assistant", "user", "assistant"]
    assert [pair.context for pair in pairs("conversations")] == ["0", "0"]


def test_a_split_is_by_context_and_the_same_in_any_order(data):
    found = pairs("sharegpt")
    train, held = split(found, 0.2, 3)
    again = split(found[::-1], 0.2, 3)
    assert set(map(id, held)) == set(map(id, again[1]))
    assert 80 < len(held) < 160
    assert len(train) + len(held) == len(found)
    same = [readers.Pair("s", "a", "", str(n), "r", "one") for n in range(9)]
    assert sorted(map(len, split(same, 0.5, 0))) == [0, 9]


def test_counts_are_kept(data, monkeypatch):
    class Words:
        def encode(self, text, specials):
            return text.split()

    monkeypatch.setattr(readers, "_tokenizer", Words)
    texts = [pair.response for pair in pairs("sharegpt")]
    counted = lengths(texts)
    assert counted == [len(text.split()) for text in texts]
    monkeypatch.setattr(readers, "_tokenizer", None)
    assert lengths(texts) == counted


def test_without_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("FORESERVE_DATA", str(tmp_path / "none"))
    assert not available("p3")
    with pytest.raises(FileNotFoundError):
        pairs("p3")
