"""Which prompts are made of the same passage, and which part of a prompt is its template's own.

One passage appears in many prompts, each round it a different template. Prompts that share a run of words are taken to
share a passage, unless so many share that run that it must be a template's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

RUN_WORDS: Final = 16
MOST_SHARING: Final = 25
"""More prompts than this that share a run of words share a template's words, not a passage."""

LEAST_INSTRUCTION: Final = 12
"""Characters; a shorter constant part says nothing of what is asked."""

_WORD = re.compile(r"\w+")


def same_context(prompts: Sequence[str], groups: Sequence[str]) -> list[int]:
    """A number for each prompt, the same for those of one group that share a passage: the first such prompt's index.

    Takes about a second for ten million characters.
    """
    ids: dict[str, int] = {}
    runs: list[NDArray[np.uint64]] = []
    owners: list[NDArray[np.int64]] = []
    for index, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
        words = [ids.setdefault(word, len(ids)) for word in _WORD.findall(prompt.lower())]
        found = _runs(np.array(words, np.uint64), ids.setdefault(f"\0{group}", len(ids)))
        runs.append(found)
        owners.append(np.full(len(found), index))
    run, owner = np.concatenate(runs), np.concatenate(owners)
    order = np.lexsort((owner, run))
    run, owner = run[order], owner[order]
    starts = np.flatnonzero(np.concatenate([[True], run[1:] != run[:-1]]))
    sizes = np.diff(np.append(starts, len(run)))
    roots = list(range(len(prompts)))
    for start, size in zip(starts[(sizes > 1)], sizes[(sizes > 1)], strict=True):
        if size <= MOST_SHARING:
            sharing = owner[start : start + size].tolist()
            for other in sharing[1:]:
                _join(roots, sharing[0], other)
    return [_root(roots, index) for index in range(len(prompts))]


def template_parts(prompts: Sequence[str], templates: Sequence[str]) -> list[tuple[str, str]]:
    """(instruction, text) of each prompt: what all of its template begin and end with, and what is between.

    Where that is too short to say anything the instruction is empty and the text the whole prompt.
    """
    by_template: dict[str, list[str]] = {}
    for prompt, template in zip(prompts, templates, strict=True):
        by_template.setdefault(template, []).append(prompt)
    ends = {template: _ends(members) for template, members in by_template.items()}
    parts = []
    for prompt, template in zip(prompts, templates, strict=True):
        begin, end = ends[template]
        instruction = f"{begin.strip()}\n{end.strip()}".strip()
        if len(instruction) < LEAST_INSTRUCTION:
            parts.append(("", prompt))
        else:
            parts.append((instruction, prompt[len(begin) : len(prompt) - len(end)].strip() or prompt))
    return parts


def _ends(members: Sequence[str]) -> tuple[str, str]:
    """The common beginning and end, to whole words, of prompts that are not all the same."""
    begin = _common(members)
    end = _common([member[::-1] for member in members])[::-1]
    if len(begin) + len(end) > min(map(len, members)):
        return "", ""
    begin = begin[: max(begin.rfind(" "), begin.rfind("\n"), begin.rfind('"')) + 1]
    first = re.search(r"\s", end)
    return begin, end[first.start() :] if first else ""


def _common(texts: Sequence[str]) -> str:
    """The longest beginning that all share: that of the first and the last in alphabetical order."""
    first, last = min(texts), max(texts)
    return first[: next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _runs(words: NDArray[np.uint64], group: int) -> NDArray[np.uint64]:
    """Hashes of the runs of words; of a long text a quarter of them, chosen by the hash itself."""
    length = min(RUN_WORDS, len(words))
    if length == 0:
        return np.array([], np.uint64)
    count = len(words) - length + 1
    hashes = np.full(count, group + 1, np.uint64)
    for offset in range(length):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + words[offset : offset + count] + np.uint64(1)
        hashes ^= hashes >> np.uint64(29)
    hashes = np.unique(hashes)
    return hashes if len(hashes) < 64 else hashes[hashes % np.uint64(4) == 0]


def _root(roots: list[int], index: int) -> int:
    while roots[index] != index:
        roots[index] = roots[roots[index]]
        index = roots[index]
    return index


def _join(roots: list[int], one: int, other: int) -> None:
    first, second = sorted((_root(roots, one), _root(roots, other)))
    roots[second] = first
