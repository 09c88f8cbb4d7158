from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from foreserve import samples
from foreserve.foresight.length import Ended
from foreserve.foresight.length_features import MEANING, Features, featurise
from foreserve.foresight.length_history import History
from foreserve.foresight.length_training import train
from foreserve.foresight.length_verdict import Sample
from foreserve.samples import Trained
from foreserve.services.training import Job, known, load, model_path, run
from tests.services.foresight import asked, length


def rows(numbers: range, *, shift: int = 0, first: int = 1) -> list[samples.Sample]:
    """As they are stored; with `shift` each has the length of another."""
    history, found = History(), []
    for n, number in enumerate(numbers, start=first):
        features = featurise([asked(number)], None, history)[0]
        tokens = length(number + shift)
        history.learn(asked(number), Ended(tokens=tokens))
        row = samples.Sample(
            service="chat", tenant="ann", at=1.7e9 + n, features=features.to_bytes(), tokens=tokens, n=n
        )
        found.append(row)
    return found


def job(folder: Path, told: list[samples.Sample], trained: Trained | None = None) -> Job:
    words = {"service": "chat", "features": "all", "tiers": ("fast",), "most_rows": 20_000}
    return Job(folder=str(folder), rows=told, trained=trained, **words)  # type: ignore[arg-type]


def test_a_first_model_is_written_and_the_same_rows_give_the_same(tmp_path: Path):
    told = rows(range(400))
    result = run(job(tmp_path, told))
    assert [(judged.tier, judged.taken, judged.rows) for judged in result.judged] == [("fast", True, 340)]
    assert result.newest == 400
    run(job(tmp_path / "again", told))
    one, other = (model_path(folder, "chat", "fast").read_bytes() for folder in (tmp_path, tmp_path / "again"))
    assert one == other


def test_a_model_that_learned_from_wrong_lengths_is_refused_and_the_old_one_stays(tmp_path: Path):
    assert run(job(tmp_path, rows(range(600)))).judged[0].taken
    before = model_path(tmp_path, "chat", "fast").read_bytes()
    # Lengths the wrong way round for as long as a model learns from, then right again where it is judged.
    told = [*rows(range(600, 1200), shift=3), *rows(range(1200, 1290), first=601)]
    told = [
        samples.Sample(**{**{f: getattr(r, f) for f in r.__struct_fields__}, "n": n + 601}) for n, r in enumerate(told)
    ]
    result = run(job(tmp_path, told, Trained(at=1.7e9, newest=600)))
    assert not result.judged[0].taken
    assert "refused" in result.judged[0].why
    assert model_path(tmp_path, "chat", "fast").read_bytes() == before


def test_what_was_deleted_leaves_no_model_behind(tmp_path: Path):
    run(job(tmp_path, rows(range(400))))
    stale = Trained(at=1.7e9, newest=400, forgotten=1)
    result = run(job(tmp_path, rows(range(50)), stale))
    assert not result.judged[0].taken
    assert load(tmp_path, "chat", "fast") is None
    result = run(job(tmp_path, [], stale))
    assert (result.newest, result.judged[0].rows) == (0, 0)


def test_what_was_deleted_leaves_no_model_of_a_tier_that_is_no_more_trained(tmp_path: Path):
    run(job(tmp_path, rows(range(400))))
    full = model_path(tmp_path, "chat", "full")
    model_path(tmp_path, "chat", "fast").rename(full)
    run(job(tmp_path, rows(range(400)), Trained(at=1.7e9, newest=400)))
    assert full.exists()
    run(job(tmp_path, rows(range(400)), Trained(at=1.7e9, newest=400, forgotten=1)))
    assert not full.exists()


def test_no_model_is_taken_unjudged(tmp_path: Path):
    told = rows(range(400))
    assert run(job(tmp_path, told)).judged[0].taken
    before = model_path(tmp_path, "chat", "fast").read_bytes()
    result = run(job(tmp_path, [*told, *rows(range(400, 410), first=401)], Trained(at=1.7e9, newest=400)))
    assert not result.judged[0].taken
    assert "10 newer answers to judge it by" in result.judged[0].why
    assert model_path(tmp_path, "chat", "fast").read_bytes() == before
    few = run(job(tmp_path / "few", rows(range(130)))).judged[0]
    assert "newest 20" in few.why


def test_no_model_is_taken_on_answers_that_were_all_cut(tmp_path: Path):
    told = rows(range(400))
    assert run(job(tmp_path, told)).judged[0].taken
    before = model_path(tmp_path, "chat", "fast").read_bytes()
    newer = [
        msgspec.structs.replace(row, tokens=1, censored=n >= 19) for n, row in enumerate(rows(range(90), first=401))
    ]
    result = run(job(tmp_path, [*told, *newer], Trained(at=1.7e9, newest=400))).judged[0]
    assert not result.taken
    assert "refused: 2 newer answers to judge it by that ended by themselves" in result.why  # 73 were held
    assert model_path(tmp_path, "chat", "fast").read_bytes() == before
    newer = [msgspec.structs.replace(row, censored=n >= 60) for n, row in enumerate(rows(range(90), first=401))]
    assert "newest 73 answers" in run(job(tmp_path, [*told, *newer], Trained(at=1.7e9, newest=400))).judged[0].why


def meant(told: list[samples.Sample], numbers: range) -> list[samples.Sample]:
    """The same rows with meanings, which tell how long the answer is."""
    found = []
    for row, number in zip(told, numbers, strict=True):
        meaning = np.full(2 * MEANING, np.log(length(number)) / 50, np.float16)
        features = msgspec.structs.replace(Features.from_bytes(row.features), meaning=meaning)
        found.append(msgspec.structs.replace(row, features=features.to_bytes()))
    return found


@pytest.mark.parametrize("wrong", [True, False])
def test_the_full_tier_serves_only_where_it_is_no_worse_than_the_fast_one(tmp_path: Path, wrong: bool):
    taught = known(meant(rows(range(1000, 1400)), range(1000, 1400)))
    full = train([Sample(one.features, Ended(tokens=9)) for one in taught] if wrong else taught)
    assert full.full
    place = model_path(tmp_path, "chat", "full")
    place.parent.mkdir()
    full.save(place)
    told = rows(range(400))
    told[340:] = meant(told[340:], range(340, 400))  # too few to train it anew
    both = msgspec.structs.replace(job(tmp_path, told), tiers=("fast", "full"))
    fast, other = run(both).judged
    assert fast.taken
    assert not other.taken
    assert place.exists() != wrong
    assert ("which serves alone" in other.why) == wrong


def test_a_damaged_model_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run(job(tmp_path, rows(range(400))))
    model_path(tmp_path, "chat", "fast").write_bytes(b"nothing of the sort")
    assert load(tmp_path, "chat", "fast") is None
    assert "a new one will be trained" in caplog.text
    assert run(job(tmp_path, rows(range(400)))).judged[0].taken


def test_rows_of_other_features_are_left_out(tmp_path: Path):
    other = samples.Sample(service="chat", tenant="ann", at=0.0, features=b"\x07old", tokens=3, n=1)
    result = run(job(tmp_path, [other] * 50 + rows(range(400))))
    assert result.judged[0].rows == 333
    assert "newest 67" in result.judged[0].why


def test_a_services_name_is_no_path(tmp_path: Path):
    assert model_path(tmp_path, "../../etc/x", "fast").parent == tmp_path / "models"
    assert model_path(tmp_path, "a.b", "fast") != model_path(tmp_path, "a.c", "fast")
