"""Tokens to text as they come: what was given out piece by piece is the text of all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from foreserve.errors import BadRequest, ConfigError
from foreserve.models.catalog import Source, locate
from foreserve.models.gguf_file import read_header
from foreserve.models.gguf_tokenizer import from_gguf
from foreserve.models.prepare import prepare
from foreserve.models.tokenizer import Tokenizer

TEXTS = [
    "Hello world",
    "12345 67 8 3.14",
    "naïve café, Ünïcödé, 日本語のテキスト, 한국어, עברית",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "  \n\n\t x   \r\n  ",
    "def f(x):\n    return x ** 2  # comment\n",
    "I'm he'll they've WE'RE",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>  <|im_end|> x<|endoftext|>",
    "\u00a0x\u3000y\u200b",
    "a" * 300 + " " * 90,
    '{"json": [1, 2.5e-3, null], "ключ": "значение"}',
    "",
]
TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("👩‍👧é日本 \n▁a1")), max_size=60)


@pytest.fixture(scope="module")
def byte_level(write_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("byte")
    from_gguf(read_header(write_tiny(folder / "tiny.gguf"))).save(str(folder / "tokenizer.json"))
    return Tokenizer(folder / "tokenizer.json")


@pytest.fixture(scope="module", params=["strip", "keep"])
def sentence_piece(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "a": 257, "▁a": 258, "▁▁": 259}
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [("▁", "a"), ("▁", "▁")], byte_fallback=True, unk_token="a")
    )
    spaces = tokenizers.normalizers.Replace(" ", "▁")
    before = [tokenizers.normalizers.Prepend("▁")] if request.param == "strip" else []
    made.normalizer = tokenizers.normalizers.Sequence([*before, spaces])
    names = tokenizers.decoders
    after = [names.Strip(" ", 1, 0)] if request.param == "strip" else []
    made.decoder = names.Sequence([names.Replace("▁", " "), names.ByteFallback(), names.Fuse(), *after])
    file = tmp_path_factory.mktemp("piece") / "tokenizer.json"
    made.save(str(file))
    return Tokenizer(file)


def in_pieces(tokenizer: Tokenizer, ids: list[int], sizes: list[int]) -> list[str]:
    detokenizer, out, at = tokenizer.detokenizer(), [], 0
    for size in [*sizes, len(ids)]:
        out.append(detokenizer.feed(ids[at : at + size]))
        at += size
    return [*out, detokenizer.flush()]


@given(text=TEXT, sizes=st.lists(st.integers(0, 4), max_size=60))
@settings(deadline=None)
def test_byte_level_pieces_join_to_the_text(byte_level: Tokenizer, text: str, sizes: list[int]) -> None:
    ids = byte_level.encode(text, specials=False)
    pieces = in_pieces(byte_level, ids, sizes)
    assert "".join(pieces) == byte_level.decode(ids) == text
    assert pieces[-1] == ""  # whole text leaves nothing behind


@given(ids=st.lists(st.integers(0, 270), max_size=80), sizes=st.lists(st.integers(0, 3), max_size=80))
@settings(deadline=None)
def test_any_ids_decode_as_the_tokenizer_itself_does(byte_level: Tokenizer, ids: list[int], sizes: list[int]) -> None:
    """Ids in any order are mostly broken UTF-8; the specials and unknown ids among them leave no trace."""
    expected = byte_level._tokenizer.decode(ids)
    assert "".join(in_pieces(byte_level, ids, sizes)) == byte_level.decode(ids) == expected


@given(text=TEXT, sizes=st.lists(st.integers(0, 4), max_size=60))
@settings(deadline=None)
def test_sentence_piece_pieces_join_to_the_text(sentence_piece: Tokenizer, text: str, sizes: list[int]) -> None:
    ids = sentence_piece.encode(text)
    expected = sentence_piece._tokenizer.decode(ids)
    assert "".join(in_pieces(sentence_piece, ids, sizes)) == sentence_piece.decode(ids) == expected
    if "▁" not in text:
        assert expected == text


def test_characters_come_when_they_are_whole(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("é€😀")
    assert len(ids) == 2 + 3 + 4
    detokenizer = byte_level.detokenizer()
    assert [detokenizer.feed([index]) for index in ids] == ["", "é", "", "", "€", "", "", "", "😀"]
    assert detokenizer.feed(ids[:1]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_other_decoders_join_as_the_tokenizer_does(tmp_path: Path) -> None:
    words = ["[UNK]", "un", "##aff", "##able", "is", "great", "[SEP]"]
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.decoder = tokenizers.decoders.WordPiece()
    made.add_special_tokens(["[SEP]"])
    made.enable_padding(length=99)
    made.enable_truncation(2)
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    ids = tokenizer.encode("unaffable is great[SEP]" + " is great" * 20)
    assert len(ids) == 6 + 40  # neither cut nor filled up, as the file asks
    assert "".join(in_pieces(tokenizer, ids, [1] * 50)) == "unaffable is great" + " is great" * 20


def test_specials_are_parsed_or_taken_as_text(byte_level: Tokenizer) -> None:
    assert byte_level.encode("<|im_end|>") == [2]
    plain = byte_level.encode("<|im_end|>", specials=False)
    assert 2 not in plain
    assert byte_level.decode(plain) == "<|im_end|>"
    assert byte_level.decode([1, *byte_level.encode("hello"), 2]) == "hello"
    assert byte_level.vocab_size == 265


def test_half_a_surrogate_pair_is_a_bad_request(byte_level: Tokenizer) -> None:
    with pytest.raises(BadRequest, match="half a surrogate pair at character 2"):
        byte_level.encode("ab\ud83d")


def test_a_broken_file_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: not a usable tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_work_grows_with_the_answer_only(byte_level: Tokenizer) -> None:
    """Counted, not timed: each id is looked up once, however long the answer is."""
    asked: list[int] = []

    class Counted:
        def id_to_token(self, index: int) -> str | None:
            asked.append(index)
            return byte_level._tokenizer.id_to_token(index)

    detokenizer = byte_level.detokenizer()
    detokenizer._pieces._tokenizer = Counted()  # type: ignore[attr-defined]
    for _ in range(5000):
        detokenizer.feed([262])
    assert len(asked) == 5000


def test_the_module_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, foreserve.models.tokenizer, foreserve.models.chat_template; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    modules = set(shown.split())
    assert "foreserve.models.tokenizer" in modules
    assert not {"torch", "transformers", "gguf", "openvino"} & modules


@pytest.fixture(scope="module")
def smollm2() -> Source:
    return locate("smollm2", "test")


@pytest.mark.model
def test_smollm2_round_trips(smollm2: Source, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(prepare(smollm2, "openvino", "q8_0", cache=tmp_path))
    for text in TEXTS:
        ids = tokenizer.encode(text, specials=False)
        assert "".join(in_pieces(tokenizer, ids, [1] * len(ids))) == text


@pytest.mark.model
@pytest.mark.slow
def test_prompt_ids_agree_with_transformers_and_openvino(smollm2: Source, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    openvino_genai = pytest.importorskip("openvino_genai")
    prepared = prepare(smollm2, "openvino", "q8_0", cache=tmp_path)
    ours = Tokenizer.load(prepared)
    folder = prepare(smollm2, "transformers", None, cache=tmp_path).weights_path
    converted = transformers.AutoTokenizer.from_pretrained(str(folder))
    original = transformers.AutoTokenizer.from_pretrained(str(smollm2.path.parent), gguf_file=smollm2.path.name)
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        str(prepared.weights_path), openvino_genai.SchedulerConfig(), "CPU", {}
    )
    theirs = pipeline.get_tokenizer()
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == converted.encode(text, add_special_tokens=False), text
        assert ids == original.encode(text, add_special_tokens=False), text
        if text:
            assert ids == theirs.encode(text, add_special_tokens=False).input_ids.data[0].tolist(), text
        assert converted.decode(ids, skip_special_tokens=True) == ours.decode(ids)
