import io
import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import elastic_worth, labelled_sets, train_vit
from benchmarks.cifar import cifar
from benchmarks.common import Report
from benchmarks.elastic_models import vaswani
from benchmarks.elastic_oracle import Bound
from benchmarks.elastic_play import CLASSES, Query, Side, drawn, simulated
from benchmarks.elastic_prompts import by_chance
from benchmarks.elastic_switching import Switching
from benchmarks.elastic_tasks import turned
from PIL import Image

from foreserve.elastic.profile import Profile

SIZES = (1, 8, 32)
SECONDS = {
    setting: tuple((0.003 + each * size,) for size in SIZES)
    for setting, each in {"merge:8": 0.001, "plain": 0.002, "prompts:4": 0.0022}.items()
}
PROFILE = Profile(sizes=SIZES, lengths=(1,), seconds=SECONDS)
ACCURACY = {"merge:8": 0.7, "plain": 0.8, "prompts:4": 0.85}
PLANS = {"easy": ACCURACY, "hard": {"merge:8": 0.5, "plain": 0.7}}
TASKS = [*PLANS]
UNIT, CAPACITY = 0.019, 32 / 0.067
CASE = elastic_worth.Case(profile=PROFILE, plans=PLANS, small="merge:8", load_s=0.5)


def test_each_query_ends_once_and_a_run_is_the_same_again() -> None:
    queries = drawn("bursty", 1.5 * CAPACITY, 300, UNIT, 1, TASKS)
    side = Side(name="ours", plans=PLANS)
    one, other = (simulated(side, PROFILE, queries, 32, seed=0) for _ in range(2))
    assert one == other
    assert one.right + one.wrong + one.late + one.dropped == 300
    assert sum(one.settings.values()) == one.right + one.wrong
    assert sum(one.shares().values()) == pytest.approx(1)


def test_settings_follow_the_load() -> None:
    mean = []
    for load in (0.2, 1.0, 2.0):
        queries = drawn("steady", load * CAPACITY, 400, UNIT, 1, ["easy"])
        tally = simulated(Side(name="ours", plans=PLANS), PROFILE, queries, 32, seed=0)
        mean.append(sum(ACCURACY[each] * n for each, n in tally.settings.items()) / sum(tally.settings.values()))
    assert mean[0] == pytest.approx(0.85, abs=0.005)
    assert mean == sorted(mean, reverse=True)
    assert mean[2] < 0.8


def test_ours_is_worth_more_than_plain_dynamic_batching_under_load() -> None:
    queries = drawn("steady", 1.2 * CAPACITY, 400, UNIT, 1, TASKS)
    ours = simulated(Side(name="ours", plans=PLANS), PROFILE, queries, 32, seed=0)
    plain = Side(name="plain", plans=CASE.alone("plain"), policy="deferred")
    assert ours.utility > 1.2 * simulated(plain, PROFILE, queries, 32, seed=0).utility


def test_switching_runs_one_model_at_a_time_and_pays_for_loading() -> None:
    models = ("merge:8", "plain")

    def worth(load_s: float) -> tuple[float, set[str]]:
        side = Side(
            name="switching",
            plans={task: {each: allowed[each] for each in models} for task, allowed in PLANS.items()},
            engine={"load_s": load_s, "models": models},
            made=lambda profile: Switching(profile, models, CAPACITY, 32),
        )
        queries = drawn("bursty", CAPACITY, 1500, UNIT, 1, TASKS)
        tally = simulated(side, PROFILE, queries, 32, seed=0)
        return tally.utility, {*tally.settings}

    free, used = worth(0.0)
    assert used == {*models}
    assert worth(1.0)[0] < free


def test_nobody_gets_more_than_the_bound_and_ours_is_near_it() -> None:
    for kind, load in (("steady", 0.5), ("steady", 2.0), ("bursty", 1.0), ("bursty", 2.0)):
        queries = drawn(kind, load * CAPACITY, 600, UNIT, 1, TASKS)
        tally = simulated(Side(name="ours", plans=PLANS), PROFILE, queries, 32, seed=0)
        bound = Bound(PROFILE, queries, PLANS, 32).lowest()
        assert bound <= max(ACCURACY.values()) * sum(query.utility for query in queries) + 1e-6
        # What was right is drawn; over many runs its mean is the expected worth, which the bound is of.
        assert 0.8 * bound < tally.utility < 1.05 * bound


def test_the_bound_of_one_query_is_its_worth_and_of_two_at_once_what_fits() -> None:
    profile = Profile(sizes=(1, 2), lengths=(1,), seconds={"plain": ((1.0,), (2.0,))})
    one = Query(at=0.0, task="t", difficulty=0.5, has_s=1.0, utility=2.0)
    assert Bound(profile, [one], {"t": {"plain": 0.8}}, 2).lowest() == pytest.approx(1.6)
    crowd = [Query(at=0.0, task="t", difficulty=0.5, has_s=1.0, utility=1.0) for _ in range(10)]
    assert 0.8 <= Bound(profile, crowd, {"t": {"plain": 0.8}}, 2).lowest() < 1.2


def test_ours_is_told_beside_all_others_and_what_nobody_exceeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic_worth, "KINDS", ("steady",))
    monkeypatch.setattr(elastic_worth, "LOADS", (2.0,))
    report, shares = Report("elastic", {}), []
    elastic_worth.worth(report, "", CASE, True, shares.append)
    assert shares == [1.0]
    found = report.figures
    assert found["utility_vs_oracle"] <= 1.0
    assert found["utility_vs_plain_batching"] > 1.2
    assert {"utility_vs_switching", "utility_vs_best_fixed_worst_load"} <= found.keys()
    assert found["utility_vs_best_fixed_ordinary"] >= 1.0
    assert found["utility_vs_best_fixed"] <= found["bound_vs_best_fixed"]
    assert found["utility_vs_best_fixed_in_hindsight"] <= found["utility_vs_best_fixed"]


def test_a_fixed_setting_is_plain_for_tasks_without_such_prompts() -> None:
    assert CASE.alone("prompts:4") == {"easy": {"prompts:4": 0.85}, "hard": {"plain": 0.7}}
    assert CASE.alone("merge:8") == {"easy": {"merge:8": 0.7}, "hard": {"merge:8": 0.5}}


def test_the_paired_test_is_exact() -> None:
    assert by_chance(0, 0) == 1.0
    assert by_chance(5, 5) == 1.0
    assert by_chance(1, 9) == by_chance(9, 1) == pytest.approx(22 / 1024)


def test_images_are_turned_by_quarters() -> None:
    picture = images(1, 3)[0]
    assert (turned(picture, 0) == picture).all()
    assert (turned(turned(picture, 1), 3) == picture).all()
    assert not (turned(picture, 2) == picture).all()


def test_queries_have_the_terms_of_their_class() -> None:
    queries = drawn("steady", 10.0, 200, UNIT, 1, TASKS)
    assert {(each.has_s, each.utility) for each in queries} == {(c.slack * UNIT, c.utility) for c in CLASSES}
    assert [each.at for each in queries] == sorted(each.at for each in queries)


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, 3, 32, 32), dtype=np.uint8)


def test_the_archive_is_read_by_class(tmp_path: Path) -> None:
    file = tmp_path / "images.tar.xz"
    with lzma.open(file, "wb") as raw, tarfile.open(fileobj=raw, mode="w|") as tar:
        for part, name, level in (("train", "cat", 10), ("train", "ship", 240), ("test", "ship", 200)):
            out = io.BytesIO()
            Image.fromarray(np.full((32, 32, 3), level, np.uint8)).save(out, "JPEG")
            info = tarfile.TarInfo(f"{part}/{name}/0000.jpg")
            info.size = out.tell()
            tar.addfile(info, io.BytesIO(out.getvalue()))
    for _ in range(2):  # decoded, then from its cache
        (train, labels), (test, held) = cifar(file, tmp_path / "cache.npz")
        assert train.shape == (2, 3, 32, 32)
        assert labels.tolist() == [3, 8]
        assert (held.tolist(), int(test.mean())) == ([8], 200)


def test_training_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_vit, "BATCH", 8)
    x, y = images(32, 0), np.arange(32) % 10
    whole = train_vit.Run(x, y, epochs=2, seed=0)
    losses = [whole.train() for _ in range(4)]
    first = train_vit.Run(x, y, epochs=2, seed=0)
    again = [first.train() for _ in range(2)]
    second = train_vit.Run(x, y, epochs=2, seed=7)
    second.restore(first.state())
    again += [second.train() for _ in range(2)]
    assert again == pytest.approx(losses, rel=1e-3)
    assert whole.pace() > 0
    assert whole.accuracy(x, y) == second.accuracy(x, y)


def test_variants_of_an_image_are_flips_and_shifts_of_it() -> None:
    x = torch.from_numpy(images(1, 0))
    found = {train_vit.Run._varied(x, np.random.default_rng(seed)).numpy().tobytes() for seed in range(20)}
    assert len(found) > 10
    middle = x[0, :, 10:22, 10:22]
    for seed in range(20):
        made = train_vit.Run._varied(x, np.random.default_rng(seed))[0]
        windows = [w for w in (made, made.flip(2)) for _ in (0,)]
        inside = any(
            torch.equal(window[:, top : top + 12, left : left + 12], middle)
            for window in windows
            for top in range(6, 15)
            for left in range(6, 15)
        )
        assert inside


def test_patches_are_projected_on_directions_of_unit_variance() -> None:
    pixels = train_vit.prepared(torch.from_numpy(images(50, 0)))
    filters = train_vit._whitening(pixels, 4, 128)
    assert filters.shape == (128, 3, 4, 4)
    found = torch.nn.functional.conv2d(pixels, filters[:48], stride=4).flatten(2).transpose(1, 2).flatten(0, 1)
    covariance = found.T @ found / len(found)
    torch.testing.assert_close(covariance, torch.eye(48), atol=0.05, rtol=0)


def test_labelled_sets_are_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORESERVE_DATA", str(tmp_path))
    assert labelled_sets.labelled_set("emotion") is None
    home = tmp_path / "textcls"
    (home / "tweeteval/emotion").mkdir(parents=True)
    (home / "tweeteval/emotion/mapping.txt").write_text("0\tanger\n1\tjoy\n")
    for part in ("train", "val", "test"):
        (home / f"tweeteval/emotion/{part}_text.txt").write_text(f"so {part}\nwell\n")
        (home / f"tweeteval/emotion/{part}_labels.txt").write_text("1\n0\n")
    (home / "sst2").mkdir()
    for part in ("train", "test"):
        (home / f"sst2/{part}.tsv.xz").write_bytes(lzma.compress(b"a fine film\t1\ndull\t0\n"))
    emotion, sst2 = labelled_sets.labelled_set("emotion"), labelled_sets.labelled_set("sst2")
    assert emotion is not None
    assert sst2 is not None
    assert emotion[1] == [("so test", "joy"), ("well", "anger")]
    assert len(emotion[0]) == 4
    assert sst2[0] == [("a fine film", "positive"), ("dull", "negative")]
    file = labelled_sets.written(sst2[0], tmp_path / "out" / "rows.jsonl")
    assert file.read_text().splitlines()[0] == '{"text": "a fine film", "label": "positive"}'


def test_judged_queries_are_read(tmp_path: Path) -> None:
    assert vaswani(tmp_path) is None
    home = tmp_path / "retrieval" / "vaswani"
    home.mkdir(parents=True)
    documents = b"<DOC>\n<DOCNO>1</DOCNO>\ncompact memories\n</DOC>\n<DOC>\n<DOCNO>2</DOCNO>\nnoise\n</DOC>\n"
    (home / "doc-text.trec.xz").write_bytes(lzma.compress(documents))
    (home / "query-text.trec").write_text("<top>\n<num>1</num><title>\nNOISE\n</title>\n</top>\n")
    (home / "qrels").write_text("1 0 2 1\n1 0 1 0\n")
    found = vaswani(tmp_path)
    assert found is not None
    assert found[0]["2"].strip() == "noise"
    assert found[1]["1"].strip() == "NOISE"
    assert found[2] == {"1": {"2"}}
