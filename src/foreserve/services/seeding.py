"""Known pairs of requests and answers, put where a service learns from: it then begins with foresight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from foreserve.engines.generation import Generate
from foreserve.errors import ConfigError, RequestError
from foreserve.foresight.length import Asked, Ended
from foreserve.foresight.length_features import Encoder, app_of, featurise, key
from foreserve.foresight.length_history import History
from foreserve.samples import Sample, SampleStore, Trained
from foreserve.services.llm import LLM
from foreserve.services.llm_asked import asked_of_chat
from foreserve.services.training import Job, Result, Tier, history_of, known, run
from foreserve.services.upstream_asked import CHARS_PER_TOKEN, CHAT, asked_upstream
from foreserve.settings import TENANT, TENANT_WORDS, ForesightSettings

TOGETHER: Final = 32
"""Pairs that are read into features at once."""

MOST_LINE: Final = 8 * 2**20
"""Characters of one line."""


MOST_TOKENS: Final = 10_000_000
"""Tokens of one answer: more than any is long."""


class Pair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of the file: what was asked, and how long the answer was, in tokens or as its text.

    `censored`: the answer was cut there. Other keys are an error: a mistyped one would be a lost answer or tenant.
    """

    text: str
    instruction: str = ""
    output_tokens: int | None = None
    response: str | None = None
    tenant: str = "default"
    censored: bool = False


class Counting:
    """How a service would read a pair: by its own tokenizer where it is a model of ours, else by characters."""

    def __init__(self, kind: object = None) -> None:
        """`kind`: of the service, prepared if it is an `LLM`."""
        self._llm = kind if isinstance(kind, LLM) else None

    def asked(self, pair: Pair, at: float) -> Asked:
        """The request, at `at` (seconds since the epoch). Raises RequestError for what the model would refuse."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": pair.text}]
        if pair.instruction:
            messages.insert(0, {"role": "system", "content": pair.instruction})
        if self._llm is None:
            raw = msgspec.Raw(msgspec.json.encode(messages))
            asked = asked_upstream(CHAT, raw, None, None, None, pair.tenant)
            if asked is None:
                raise ConfigError("the text is longer than what is read of a conversation")
            return asked
        text = self._llm.text
        prompt = text.conversation(messages, at)
        most = max(1, text.context_tokens - len(prompt))
        return asked_of_chat(messages, Generate(prompt=prompt, max_tokens=most), pair.tenant)

    def tokens(self, pair: Pair) -> int:
        """How long the answer was, the token that ends it included where it is counted here."""
        if pair.output_tokens is not None:
            return pair.output_tokens
        response = pair.response or ""
        if self._llm is None:
            return len(response) // CHARS_PER_TOKEN + 1
        return len(self._llm.text.encode(response)) + 1


def read_pairs(path: Path) -> Iterator[tuple[int, Pair]]:
    """The rows of a JSONL file with their line numbers. Raises ConfigError that names file, line and what is wrong."""
    decoder = msgspec.json.Decoder(Pair)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                if len(line) > MOST_LINE:
                    raise ConfigError(f"{where}: longer than {MOST_LINE} bytes")
                try:
                    pair = decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise ConfigError(
                        f"{where}: {error}; a row is like "
                        '{"instruction": "…", "text": "…", "output_tokens": 42, "tenant": "…"}; '
                        f"valid fields: {', '.join(Pair.__struct_fields__)}"
                    ) from None
                if (wrong := _wrong(pair)) is not None:
                    raise ConfigError(f"{where}: {wrong}")
                yield number, pair
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _wrong(pair: Pair) -> str | None:
    """What is wrong with a row whose fields are of the right types."""
    if pair.output_tokens is None and pair.response is None:
        return "give `output_tokens`, or `response` to count them"
    if pair.output_tokens is not None and not 1 <= pair.output_tokens <= MOST_TOKENS:
        return f"`output_tokens` is {str(pair.output_tokens)[:32]}; it must be from 1 to {MOST_TOKENS}"
    if pair.response == "":
        return "`response` is empty; it must be the answer's text, or give `output_tokens` alone"
    if not TENANT.fullmatch(pair.tenant):
        return f"`tenant` is {pair.tenant[:64]!r}; valid: {TENANT_WORDS}"
    return None


class Seeder:
    """Puts pairs into the store of a service and trains its models, here and now."""

    def __init__(
        self, service: str, settings: ForesightSettings, store: SampleStore, counting: Counting, encoder: Encoder | None
    ) -> None:
        self._service = service
        self._settings = settings
        self._store = store
        self._counting = counting
        self._encoder = encoder

    def put(self, path: Path, at: float, progress: Callable[[int], None]) -> int:
        """All pairs of a file, as if they had ended at `at` (seconds since the epoch); how many there were.

        `progress` hears of so many more bytes read, about. Raises ConfigError before anything is kept.
        """
        pairs = []
        for number, pair in read_pairs(path):
            try:
                pairs.append((self._counting.asked(pair, at), pair, self._counting.tokens(pair)))
            except RequestError as error:
                raise ConfigError(f"{path}, line {number}: {error.message}") from None
            except ConfigError as error:
                raise ConfigError(f"{path}, line {number}: {error}") from None
            progress(1)
        if not pairs:
            raise ConfigError(f"{path}: no rows in it; a row is a line of JSON")
        history = history_of(known(self._store.read(self._service)))
        for start in range(0, len(pairs), TOGETHER):
            self._keep(pairs[start : start + TOGETHER], history, at)
            progress(len(pairs[start : start + TOGETHER]))
        if not self._store.flush(60.0) or self._store.dropped:
            raise ConfigError(f"the learning store {self._store.path} could not be written")
        return len(pairs)

    def _keep(self, pairs: Sequence[tuple[Asked, Pair, int]], history: History, at: float) -> None:
        every = featurise([asked for asked, _, _ in pairs], self._encoder, history)
        for (asked, pair, tokens), features in zip(pairs, every, strict=True):
            ended = Ended(tokens=tokens, censored=pair.censored)
            history.learn_of(app_of(asked), key(asked.tenant), asked.input_tokens, ended)
            self._store.record(
                Sample(
                    service=self._service,
                    tenant=pair.tenant,
                    at=at,
                    features=features.to_bytes(),
                    tokens=tokens,
                    censored=pair.censored,
                )
            )
        self._store.flush(60.0)

    def train(self, folder: Path, at: float) -> Result:
        """Train the service's models from all that it remembers."""
        tiers: tuple[Tier, ...] = ("fast",) if self._encoder is None else ("fast", "full")
        trained = self._store.trained(self._service)
        job = Job(
            service=self._service,
            folder=str(folder),
            features=self._settings.features,
            tiers=tiers,
            most_rows=self._settings.keep_rows,
            store=str(self._store.path),
            trained=trained,
        )
        result = run(job)
        if any(judged.taken for judged in result.judged):
            forgotten = 0 if trained is None else trained.forgotten
            self._store.set_trained(self._service, Trained(at=at, newest=result.newest, forgotten=forgotten))
        return result
