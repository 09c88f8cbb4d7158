"""What is asked: prompts from a JSONL file, or a small set of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from foreserve.errors import ConfigError
from foreserve.traces.files import lines

MAX_PROMPTS = 100_000


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One question: either `prompt` (text) or `messages` (OpenAI's form), with its own terms where it brings any."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None = None
    tenant: str | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("expected either `prompt` or `messages`")
        if not self.prompt and not self.messages:
            raise ValueError("the prompt is empty")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"`max_tokens` is {self.max_tokens}; it must be at least 1")

    def as_messages(self) -> list[dict[str, Any]]:
        """For `/v1/chat/completions`: a text becomes one message of the user."""
        return self.messages if self.messages is not None else [{"role": "user", "content": self.prompt}]

    def as_text(self) -> str:
        """For `/v1/completions`. Raises ConfigError for messages: only the server knows the model's chat template."""
        if self.prompt is None:
            raise ConfigError("a prompt with `messages` needs the chat endpoint; valid for completions: `prompt`")
        return self.prompt


def load(path: Path, limit: int = MAX_PROMPTS) -> list[Prompt]:
    """The first `limit` prompts of a JSONL file (`.xz` and `.gz` too); other keys on a line are ignored.

    Raises ConfigError that names the file and the line.
    """
    decoder = msgspec.json.Decoder(Prompt)
    prompts: list[Prompt] = []
    for number, text in lines(path):
        if len(prompts) == limit:
            break
        try:
            prompts.append(decoder.decode(text))
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path}: line {number}: {error}") from None
    if not prompts:
        raise ConfigError(f"{path}: no prompts")
    return prompts


_OWN: tuple[tuple[str, int], ...] = (
    ("What is the capital of Portugal? Answer with one word.", 8),
    ("Is 91 a prime number? Say yes or no and name its factors.", 32),
    ("Translate into French: the train to the coast leaves at seven in the morning.", 32),
    ("Name three fruits that grow on trees and one that does not.", 40),
    ("Correct the grammar: she don't has no time for to visit us yesterday.", 32),
    ("A shop sells pens at 3 for 2 euros. What do 18 pens cost? Show each step.", 96),
    ("Give a one-sentence summary of what a load balancer does.", 48),
    ("Write a polite reply to a guest who asks for a later check-out.", 96),
    ("Explain to a child of ten why the sky is blue.", 128),
    ("Write a Python function that returns the median of a list of numbers, with a docstring.", 160),
    ("List the steps for repairing a flat bicycle tyre.", 160),
    ("Compare tea and coffee in a short paragraph: taste, caffeine and how each is made.", 160),
    ("Turn this into JSON with the keys name, age and city: Mara is 34 and lives in Turin.", 48),
    ("What is wrong in this code? def mean(x): return sum(x) / len(x) if x is empty return 0", 96),
    ("Plan a day in a city by the sea for a family with two small children; give times of day.", 200),
    ("Write a short story about a lighthouse keeper who finds a message in a bottle.", 256),
    ("Explain how a hash table works, what a collision is and two ways to handle one.", 256),
    ("Write a letter to the editor in favour of more benches in the public park, with three reasons.", 224),
    (
        "Summarise in two sentences: The ferry had run every day for sixty years, in calm and in storm, until the "
        "bridge was opened. On its last trip the whole village came aboard, the baker and the teacher, the children "
        "and the dogs, and the captain, who had never once been late, went slowly so that they would have longer to "
        "look back.",
        80,
    ),
    (
        "Read the notes and write the minutes. Present: Ana, Ben, Chi. The printer is to be replaced, Ben asks for "
        "three offers until Friday. The newsletter goes out a week later because two articles are missing. Chi found "
        "that the new form saves ten minutes a case. Next meeting in two weeks, Ana brings the budget.",
        160,
    ),
)


def built_in() -> list[Prompt]:
    """Our own twenty, from one word to a page, each with a limit (tokens) that suits its answer."""
    return [Prompt(prompt=text, max_tokens=limit) for text, limit in _OWN]
