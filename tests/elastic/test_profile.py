import pytest

from foreserve.elastic.profile import LEAST_GUARD, MOST_GUARD, Profile, Timing
from foreserve.errors import ConfigError

PROFILE = Profile(
    sizes=(1, 4, 16),
    lengths=(10, 30),
    seconds={"plain": ((1.0, 3.0), (2.0, 6.0), (6.0, 18.0)), "merge:4": ((0.5, 1.0), (1.0, 2.0), (3.0, 6.0))},
    bytes={"plain": ((10.0, 30.0), (40.0, 120.0), (160.0, 480.0))},
)


@pytest.mark.parametrize(
    ("size", "length", "seconds"),
    [
        (1, 10, 1.0),
        (16, 30, 18.0),
        (2, 10, 1.0 + 1 / 3),
        (4, 20, 4.0),
        (10, 20, 8.0),
        (1, 3, 1.0),
        (32, 10, 12.0),
        (1, 60, 6.0),
    ],
)
def test_times_lie_on_the_lines_between_what_was_measured(size: int, length: int, seconds: float) -> None:
    assert Timing(PROFILE).seconds("plain", size, length) == pytest.approx(seconds)


def test_more_inputs_and_longer_ones_never_take_less() -> None:
    timing = Timing(PROFILE)
    for length in (1, 10, 17, 30, 40):
        row = [timing.seconds("plain", size, length) for size in range(1, 40)]
        assert row == sorted(row)


def test_the_guard_covers_nearly_all_of_what_was_seen_and_is_bounded() -> None:
    timing = Timing(PROFILE)
    assert timing.guard == 1.0
    for ratio in [1.2, 1.4, 1.3, 1.5, 1.2, 1.4] * 10:
        timing.learn("merge:4", 4, 10, ratio * 1.0)
    assert 1.35 < timing.guard < 1.7
    assert timing.seconds("plain", 1, 10) == pytest.approx(timing.guard)
    for _ in range(200):
        timing.learn("plain", 1, 10, 0.001)
    assert timing.guard == LEAST_GUARD
    for _ in range(200):
        timing.learn("plain", 1, 10, 1000.0)
    assert timing.guard == MOST_GUARD
    timing.learn("prompts:4", 1, 10, 1.0)  # of no setting of the profile: nothing is learned
    assert timing.guard == MOST_GUARD


def test_memory_is_told_where_it_was_measured() -> None:
    assert Timing(PROFILE).bytes("plain", 4, 10) == 40
    assert Timing(PROFILE).bytes("merge:4", 4, 10) == 0


def test_lengths_go_into_the_least_bucket_that_holds_them() -> None:
    assert [Timing(PROFILE).bucket(each) for each in (1, 10, 11, 30, 31)] == [10, 10, 30, 30, 31]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"sizes": ()}, "sizes"),
        ({"sizes": (4, 1, 16)}, "rise"),
        ({"lengths": (0, 30)}, "lengths"),
        ({"seconds": {}}, "no setting"),
        ({"seconds": {"plain": ((1.0, 2.0),)}}, "3 rows of 2 values"),
        ({"seconds": {"gamma": PROFILE.seconds["plain"]}}, "no token setting"),
        ({"seconds": {"plain": ((0.0, 3.0), (2.0, 6.0), (6.0, 18.0))}}, "above 0"),
    ],
)
def test_tables_that_do_not_fit_are_told(words: dict[str, object], told: str) -> None:
    given = {"sizes": (1, 4, 16), "lengths": (10, 30), "seconds": PROFILE.seconds, **words}
    with pytest.raises(ConfigError, match=told):
        Profile(**given)  # type: ignore[arg-type]
