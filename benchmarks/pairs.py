"""Real prompts with their real responses: what a length predictor learns from, and the truth of a simulated request.

Sources: `apps` (Magnus's six applications, as many of each), `sharegpt` (first turns of chats), `p3` (34 data sets in
294 templates), `gsm8k` and `conversations` (each answer of a chat with its history). All need the data folder.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from benchmarks.contexts import same_context, template_parts
from benchmarks.data import folder
from foreserve.models.catalog import locate
from foreserve.models.prepare import prepare
from foreserve.models.tokenizer import Tokenizer
from foreserve.settings import Environment
from foreserve.traces.files import lines

Message = dict[str, str]
"""A turn of a chat in OpenAI's form: `role` and `content`."""


class Pair(msgspec.Struct, frozen=True):
    """A prompt in its two parts and the answer it had. `context` must not be split between training and held-out."""

    source: str
    app: str
    instruction: str
    text: str
    response: str
    context: str

    @property
    def prompt(self) -> str:
        """Both parts as one text."""
        return f"{self.instruction}\n\n{self.text}" if self.instruction else self.text


INSTRUCTIONS: Final = {
    "detoxification": "Rewrite the following text so that it is polite and keeps its meaning.",
    "grammar": "Correct the grammar of the following sentence.",
    "code_translation": "Translate the following Java code to C#.",
    "bug_fixing": "Fix the bugs in the following Java method.",
    "code_comment": "Write a short comment that says what the following Java method does.",
    "translation": "Translate the following text to English.",
}
"""What the six applications tell the model, each its own for all its requests."""

MAX_CHARS: Final = 32_000
"""Pairs with a longer text or response are left out."""


def pairs(source: str, count: int | None = None, *, seed: int = 0) -> list[Pair]:
    """`count` pairs of a source (all without), drawn without repetition with `seed`, in an order of no meaning.

    `apps` gives as many of each application as the smallest has. Raises FileNotFoundError without the data and
    KeyError for a source that is not in `SOURCES`.
    """
    found = [pair for pair in SOURCES[source]() if _usable(pair)]
    rng = np.random.default_rng(seed)
    found = [found[index] for index in rng.permutation(len(found))]
    if source == "apps":
        found = _balanced(found)
    return found[:count]


def available(source: str) -> bool:
    """Whether the data of a source is on this machine."""
    return (folder() / _PLACES[source]).exists()


def split(found: Sequence[Pair], held_out: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(train, held out), about `held_out` of the contexts in the second; the same on every call, in whatever order."""
    kept: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in found:
        digest = hashlib.blake2b(f"{seed}\0{pair.context}".encode(), digest_size=8).digest()
        kept[int.from_bytes(digest) / 2**64 < held_out].append(pair)
    return kept


def conversations(count: int | None = None, *, seed: int = 0) -> list[list[Message]]:
    """Chats of many turns, `user` and `assistant` in turn from the first, each of at least one answer."""
    chats = [_turns(row["conversations"]) for row in _json_lines(_PLACES["conversations"])]
    chats = [chat for chat in chats if len(chat) >= 2]
    return [chats[index] for index in np.random.default_rng(seed).permutation(len(chats))[:count]]


def lengths(texts: Sequence[str]) -> list[int]:
    """Tokens of each text by SmolLM2's tokenizer, at least 1. Counts of long lists are kept in the cache folder."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(text.encode("utf-8", "replace") + b"\0")
    kept = Environment.read().cache / "benchmarks" / f"tokens-{digest.hexdigest()}.npy"
    if kept.is_file():
        return [int(count) for count in np.load(kept, allow_pickle=False)]
    tokenizer = _tokenizer()
    counts = [max(1, len(tokenizer.encode(text.encode("utf-8", "replace").decode(), specials=False))) for text in texts]
    if len(texts) >= 500:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, np.array(counts, np.int32), allow_pickle=False)
    return counts


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.load(prepare(locate("smollm2", "benchmarks"), "openvino", None))


def _usable(pair: Pair) -> bool:
    return bool(pair.text.strip() and pair.response.strip()) and max(len(pair.text), len(pair.response)) <= MAX_CHARS


def _balanced(found: Sequence[Pair]) -> list[Pair]:
    """As many of each application, the order kept otherwise."""
    by_app: dict[str, list[int]] = {}
    for index, pair in enumerate(found):
        by_app.setdefault(pair.app, []).append(index)
    most = min(map(len, by_app.values()), default=0)
    return [found[index] for index in sorted(index for indices in by_app.values() for index in indices[:most])]


# --- the six applications


def _app(app: str, rows: Iterator[tuple[str, str]]) -> Iterator[Pair]:
    for text, response in rows:
        yield Pair("apps", app, INSTRUCTIONS[app], text.strip(), response.strip(), f"{app}: {text.strip()[:200]}")


def _apps() -> Iterator[Pair]:
    yield from _app("detoxification", _paradetox())
    yield from _app("grammar", _parallel("jfleg", ("dev", "test"), "src", "ref0"))
    yield from _app("code_translation", _parallel("code_translation", ("train", "valid", "test"), "java", "cs"))
    yield from _app("bug_fixing", _parallel("bug_fix", ("small", "medium"), "buggy", "fixed"))
    yield from _app("code_comment", _concode())
    yield from _app("translation", _documents())


def _paradetox() -> Iterator[tuple[str, str]]:
    for number, line in lines(folder() / "prompts/apps/paradetox.tsv.xz"):
        columns = line.split("\t")
        if number > 1 and len(columns) > 1:
            yield columns[0], columns[1]


def _concode() -> Iterator[tuple[str, str]]:
    for part in ("dev", "test"):
        for row in _json_lines(f"prompts/apps/code_comment/concode_{part}.json.xz"):
            yield row["code"], row["nl"].split("concode_field_sep")[0]


def _documents() -> Iterator[tuple[str, str]]:
    for language in ("da", "lv", "no", "zh"):
        yield from _parallel("translation_docs", (f"{language}-en",), language, "en")


def _parallel(archive: str, starts: Sequence[str], source: str, target: str) -> Iterator[tuple[str, str]]:
    """Line by line from pairs of files that differ in their last suffix alone, those that begin with `starts`."""
    files = _archive(folder() / f"prompts/apps/{archive}.tar.xz")
    for name in sorted(files):
        if name.startswith(tuple(starts)) and name.endswith(f".{source}"):
            other = files[name.removesuffix(source) + target]
            yield from zip(files[name].splitlines(), other.splitlines(), strict=False)


def _archive(path: Path) -> dict[str, str]:
    with tarfile.open(path, "r:xz") as archive:
        files = ((Path(member.name).name, archive.extractfile(member)) for member in archive)
        return {name: file.read().decode().replace("\r\n", "\n") for name, file in files if file}


# --- chats and data sets


def _sharegpt() -> Iterator[Pair]:
    for row in _json_lines(_PLACES["sharegpt"]):
        # An id is the chat's with the number of its part.
        yield Pair("sharegpt", "chat", "", row["prompt"], row["response"], row["id"].rsplit("_", 1)[0])


def _gsm8k() -> Iterator[Pair]:
    for part in ("train", "test"):
        for row in _json_lines(f"prompts/gsm8k/{part}.jsonl.xz"):
            yield Pair("gsm8k", "gsm8k", "", row["question"], row["answer"], row["question"])


def _p3() -> Iterator[Pair]:
    """The constant beginning and end of a template are its instruction, as an application would know its own."""
    rows = list(_json_lines(_PLACES["p3"]))
    parts = template_parts([row["prompt"] for row in rows], [row["template"] for row in rows])
    contexts = same_context([text for _, text in parts], [row["app"] for row in rows])
    for row, context, (instruction, text) in zip(rows, contexts, parts, strict=True):
        response = row["completion"].removesuffix("<|endoftext|>").strip()
        yield Pair("p3", row["app"], instruction, text, response, f"{row['app']}: {context}")


def _chat_turns() -> Iterator[Pair]:
    for number, chat in enumerate(conversations()):
        for asked, answered in zip(chat[::2], chat[1::2], strict=False):
            yield Pair("conversations", "chat", "", asked["content"], answered["content"], str(number))


def _turns(said: Sequence[dict[str, str]]) -> list[Message]:
    """From the first of the user's on, as far as the two speak in turn."""
    roles = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}
    chat: list[Message] = []
    for turn in said:
        role = roles.get(turn["from"])
        wanted = "assistant" if len(chat) % 2 else "user"
        if role == wanted and turn["value"].strip():
            chat.append({"role": role, "content": turn["value"]})
        elif chat:
            break
    return chat[: len(chat) // 2 * 2]


def _json_lines(place: str) -> Iterator[dict[str, Any]]:
    with lzma.open(folder() / place, "rb") as file:
        yield from map(json.loads, file)


_PLACES: Final = {
    "apps": "prompts/apps/paradetox.tsv.xz",
    "sharegpt": "prompts/sharegpt/sharegpt_first_turn_6000.jsonl.xz",
    "p3": "prompts/p3_t0/p3_t0_all_55185.jsonl.xz",
    "gsm8k": "prompts/gsm8k/test.jsonl.xz",
    "conversations": "prompts/sharegpt/sharegpt_multiturn_1000.jsonl.xz",
}
SOURCES: Final[dict[str, Callable[[], Iterator[Pair]]]] = {
    "apps": _apps,
    "sharegpt": _sharegpt,
    "p3": _p3,
    "gsm8k": _gsm8k,
    "conversations": _chat_turns,
}
