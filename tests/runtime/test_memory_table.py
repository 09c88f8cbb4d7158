import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from foreserve.runtime.memory_entry import Arm, Deny, Evict, Give, Grant, Load, Refuse, State, Stop
from foreserve.runtime.memory_table import Table  # fmt: skip


def kinds(effects):
    return [type(effect).__name__ for effect in effects]


def ready(table, lease, key, size=100, restore_s=1.0, now=0.0):
    """An entry that is there, held by `lease`."""
    (load,) = table.acquire(lease, key, size, now)
    assert isinstance(load, Load)
    (give,) = table.loaded(load.entry, size, restore_s, size, now)
    assert give == Give(lease, load.entry)
    return load.entry


def test_one_load_for_all_who_ask():
    table = Table(900.0)
    (load,) = table.acquire(1, "k", 100, 0.0)
    assert [effect for lease in range(2, 9) for effect in table.acquire(lease, "k", 100, 0.0)] == []
    assert (table.hits, table.misses) == (7, 1)
    gives = table.loaded(load.entry, 100, 2.0, 100, 2.0)
    assert gives == [Give(lease, load.entry) for lease in range(1, 9)]
    assert table.acquire(9, "k", 100, 3.0) == [Give(9, load.entry)]  # no transfer any more
    assert load.entry.bytes_read == 100


def test_a_failure_wakes_all_and_the_next_tries_again():
    table = Table(900.0)
    (load,) = table.acquire(1, "k", 100, 0.0)
    table.acquire(2, "k", 100, 0.0)
    assert table.failed(load.entry, "no", 1.0) == [Refuse(1, "no"), Refuse(2, "no")]
    assert not table.entries
    assert not table.holders()
    assert kinds(table.acquire(3, "k", 100, 2.0)) == ["Load"]
    assert table.release(1, 3.0) == []


def test_contents_that_differ_share_nothing():
    table = Table(900.0)
    assert ready(table, 1, "sha256:a") is not ready(table, 2, "sha256:b")


def test_equal_contents_are_shared_once_that_is_known():
    table = Table(900.0)
    entry = ready(table, 1, "stat:1")
    table.learn(entry, "sha256:a")
    assert table.acquire(2, "sha256:a", 100, 1.0) == [Give(2, entry)]
    other = ready(table, 3, "stat:2")
    table.learn(other, "sha256:a")  # both are there: neither is thrown away
    assert table.find("sha256:a") is entry
    assert other.keys == ["stat:2"]


def test_what_is_idle_goes_after_its_time_and_not_when_it_was_wanted_again():
    table = Table(900.0)
    entry = ready(table, 1, "k")
    (first,) = table.release(1, 10.0)
    assert first == Arm(entry, first.generation, 910.0)
    table.acquire(2, "k", 100, 20.0)
    assert table.fired(entry, first.generation, 910.0) == []  # it is held
    (second,) = table.release(2, 30.0)
    assert table.fired(entry, first.generation, 910.0) == []  # it is idle, by another timer
    assert table.fired(entry, second.generation, 930.0) == [Evict(entry)]
    assert table.bytes == 100  # until it is gone
    assert table.gone(entry, 931.0) == []
    assert table.bytes == 0
    assert not table.entries


def test_who_asks_for_what_is_going_gets_it_loaded_anew():
    table = Table(0.0)
    entry = ready(table, 1, "k")
    (arm,) = table.release(1, 0.0)
    assert table.fired(entry, arm.generation, 0.0) == [Evict(entry)]
    assert table.acquire(2, "k", 100, 0.1) == []
    assert table.acquire(3, "k", 100, 0.1) == []
    table.release(3, 0.2)
    assert table.gone(entry, 0.3) == [Load(entry)]
    assert table.loaded(entry, 100, 1.0, 100, 1.3) == [Give(2, entry)]
    assert (table.hits, table.misses) == (1, 2)


def test_a_load_that_nobody_waits_for_is_stopped():
    table = Table(900.0)
    (load,) = table.acquire(1, "k", 100, 0.0)
    assert table.release(1, 0.1) == [Stop(load.entry)]
    assert table.acquire(2, "k", 100, 0.2) == []  # it waits until that is over
    assert table.gone(load.entry, 0.3) == [Load(load.entry)]
    assert table.release(2, 0.4) == [Stop(load.entry)]
    assert table.loaded(load.entry, 100, 1.0, 100, 0.5) == [Evict(load.entry)]  # done all the same
    assert table.gone(load.entry, 0.6) == []
    assert not table.entries


# --- room


def test_pressure_takes_what_costs_least_to_have_again_for_its_bytes():
    """The example of the specification: a context (4.47 s, 1.5 GB) is worth more than weights (12 GB/s) of any size."""
    table = Table(900.0, capacity=25_000)
    context = ready(table, 1, "context", 1_500, restore_s=4.47)
    weights = ready(table, 2, "weights", 20_000, restore_s=20_000 / 12_000)
    held = ready(table, 3, "held", 100, restore_s=0.0)
    assert 1e3 * context.density == pytest.approx(2.98, abs=0.01)
    assert 1e3 * weights.density == pytest.approx(0.083, abs=0.001)
    table.release(1, 1.0)
    table.release(2, 2.0)
    assert table.acquire(4, "new", 4_000, 3.0) == [Evict(weights)]
    assert table.acquire(5, "other", 100, 3.0) == []  # in its turn; what is going is enough
    assert kinds(table.gone(weights, 4.0)) == ["Load", "Load"]
    assert held.state is State.READY
    assert context.idle


def test_what_is_held_is_never_taken_and_what_has_no_room_waits():
    table = Table(900.0, capacity=100)
    held = ready(table, 1, "held", 60)
    idle = ready(table, 2, "idle", 20)
    table.release(2, 0.0)
    assert table.acquire(3, "large", 50, 1.0) == []
    assert idle.state is State.READY  # its going would not be enough
    assert table.acquire(4, "small", 10, 1.0) == []  # it does not pass
    large, small = table.find("large"), table.find("small")
    assert [table.stalled(entry) for entry in (held, large, small)] == [False, True, True]
    assert kinds(table.release(1, 2.0)) == ["Arm", "Evict"]
    assert [table.stalled(entry) for entry in (large, small)] == [False, False]  # what is going is enough
    assert held.state is not idle.state
    assert kinds(table.gone(held if held.state is State.EVICTING else idle, 3.0)) == ["Load", "Load"]
    assert table.bytes <= 100


def test_who_gives_up_waiting_for_room_makes_way():
    table = Table(900.0, capacity=100)
    ready(table, 1, "held", 60)
    assert table.acquire(2, "large", 50, 1.0) == []
    assert table.acquire(3, "small", 10, 1.0) == []
    (load,) = table.release(2, 2.0)
    assert load.entry is table.find("small")
    assert table.find("large") is None


def test_what_can_never_fit_is_refused_at_once():
    table = Table(900.0, capacity=100)
    (refusal,) = table.acquire(1, "k", 101, 0.0)
    assert refusal == Refuse(1, "it has 101 bytes; all weights together may take 100 (host_gb)")
    assert not table.entries


def test_a_load_that_learns_its_size():
    table = Table(900.0, capacity=100)
    idle = ready(table, 1, "idle", 60)
    table.release(1, 0.0)
    (load,) = table.acquire(2, "uri", 0, 1.0)
    assert table.resize(load.entry, 30, 1.0) == [Grant(load.entry)]
    assert table.resize(load.entry, 80, 1.0) == [Evict(idle)]
    assert table.gone(idle, 2.0) == [Grant(load.entry)]
    assert kinds(table.loaded(load.entry, 70, 1.0, 70, 3.0)) == ["Give"]
    assert table.bytes == 70
    (other,) = table.acquire(3, "other", 0, 4.0)
    (denial,) = table.resize(other.entry, 31, 4.0)
    assert isinstance(denial, Deny)
    assert denial.reason == "it needs 31 bytes; all weights together may take 100 (host_gb), and 70 are in use"
    assert table.failed(other.entry, denial.reason, 4.0) == [Refuse(3, denial.reason)]
    with pytest.raises(ValueError, match="80 bytes were loaded where 70 were granted"):
        table.loaded(load.entry, 80, 1.0, 70, 3.0)


# --- identities


def test_what_a_worker_still_has_is_adopted_and_not_loaded():
    table = Table(900.0)
    (give,) = table.adopt(1, "k", 100, 2.5, 0.0)
    assert give.entry.density == 0.025
    assert table.adopt(2, "k", 100, 2.5, 0.0) == [Give(2, give.entry)]
    assert table.bytes == 100
    assert table.misses == 0


def test_what_is_no_longer_what_it_was_called_stays_for_who_has_it():
    table = Table(900.0)
    old = ready(table, 1, "sha256:a")
    assert table.forget(old) == []
    new = ready(table, 2, "sha256:a")
    assert new is not old
    assert table.bytes == 200
    assert table.release(1, 1.0) == [Evict(old)]  # nobody can ask for it again
    table.gone(old, 2.0)
    table.release(2, 3.0)
    assert table.forget(new) == [Evict(new)]


def test_a_lease_is_used_once():
    table = Table(900.0)
    ready(table, 1, "k")
    with pytest.raises(ValueError, match="lease 1 holds something already"):
        table.acquire(1, "k", 100, 0.0)


CAPACITY = 100
SIZES = {"a": 10, "b": 40, "c": 60, "d": 100, "e": 101, "u": 0, "v": 0}
"""By identity; 0: not known before."""


class Life(RuleBasedStateMachine):
    """Any course of events: an owner that does what it is told, in its own time."""

    def __init__(self):
        super().__init__()
        self.table = Table(10.0, CAPACITY)
        self.now = 0.0
        self.lease = 0
        self.live, self.given = {}, {}  # lease: identity; lease: entry
        self.loading, self.asking, self.going = {}, {}, {}  # entry number: entry
        self.timers = []
        self.adopted = False

    def do(self, effects):
        for effect in effects:
            match effect:
                case Load(entry):
                    assert entry.number not in self.loading, "one load at a time"
                    assert entry.number not in self.going
                    self.loading[entry.number] = entry
                case Stop(entry):
                    self.going[entry.number] = self.loading.pop(entry.number)
                    self.asking.pop(entry.number, None)
                case Evict(entry):
                    assert not any(entry is mine for mine in self.given.values()), "only what nobody holds"
                    assert entry.number not in self.going
                    self.going[entry.number] = entry
                case Give(lease, entry):
                    assert lease in self.live
                    assert lease not in self.given
                    self.given[lease] = entry
                case Refuse(lease, _):
                    del self.live[lease]
                case Grant(entry):
                    assert self.asking.pop(entry.number) <= entry.bytes
                case Deny(entry, reason):
                    del self.asking[entry.number]
                    self.do(self.table.failed(self.loading.pop(entry.number), reason, self.now))
                case Arm():
                    self.timers.append(effect)

    @rule(key=st.sampled_from(sorted(SIZES)))
    def acquire(self, key):
        self.lease += 1
        self.live[self.lease] = key
        self.do(self.table.acquire(self.lease, key, SIZES[key], self.now))

    @rule(key=st.sampled_from(["a", "b", "x"]))
    def adopt(self, key):
        self.lease += 1
        self.live[self.lease] = key
        self.adopted = True
        self.do(self.table.adopt(self.lease, key, SIZES.get(key, 30), 1.0, self.now))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data):
        lease = data.draw(st.sampled_from(sorted(self.live)))
        del self.live[lease]
        self.given.pop(lease, None)
        self.do(self.table.release(lease, self.now))

    @precondition(lambda self: set(self.loading) - set(self.asking))
    @rule(data=st.data(), fails=st.booleans(), seconds=st.floats(0, 9))
    def end_of_a_load(self, data, fails, seconds):
        entry = self.loading.pop(data.draw(st.sampled_from(sorted(set(self.loading) - set(self.asking)))))
        if fails:
            self.do(self.table.failed(entry, "no", self.now))
        else:
            self.do(self.table.loaded(entry, entry.bytes, seconds, entry.bytes, self.now))

    @precondition(lambda self: set(self.loading) - set(self.asking))
    @rule(data=st.data(), size=st.integers(1, 120))
    def a_load_learns_its_size(self, data, size):
        number = data.draw(st.sampled_from(sorted(set(self.loading) - set(self.asking))))
        self.asking[number] = size
        self.do(self.table.resize(self.loading[number], size, self.now))

    @precondition(lambda self: self.going)
    @rule(data=st.data())
    def end_of_an_eviction(self, data):
        self.do(self.table.gone(self.going.pop(data.draw(st.sampled_from(sorted(self.going)))), self.now))

    @rule(seconds=st.floats(0, 8))
    def time_goes_by(self, seconds):
        self.now += seconds
        due = [timer for timer in self.timers if timer.at <= self.now]
        self.timers = [timer for timer in self.timers if timer.at > self.now]
        for timer in due:
            effects = self.table.fired(timer.entry, timer.generation, self.now)
            if effects:
                assert timer.at >= timer.entry.idle_since + 10.0, "a cancelled timer has fired"
            self.do(effects)

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def a_file_changes(self, data):
        self.do(self.table.forget(self.given[data.draw(st.sampled_from(sorted(self.given)))]))

    @invariant()
    def references_are_live_holders(self):
        assert set(self.table.holders()) == set(self.live)
        assert sum(len(entry.leases) for entry in self.table.entries.values()) == len(self.live)
        assert all(self.given[lease].state is State.READY for lease in self.given)

    @invariant()
    def bytes_are_accounted(self):
        assert self.table.bytes == sum(entry.bytes for entry in self.table.entries.values())
        for entry in self.table.entries.values():
            known = entry.number in self.loading or entry.number in self.going or entry.state is State.READY
            assert known or entry.bytes == 0
        if not self.adopted:
            assert self.table.bytes <= CAPACITY

    @invariant()
    def nothing_waits_for_what_is_free(self):
        if not self.going and not self.loading and not self.given:
            waiting = [entry for entry in self.table.entries.values() if entry.state is State.LOADING]
            assert not waiting

    @invariant()
    def one_entry_for_a_content(self):
        keys = [key for entry in self.table.entries.values() for key in entry.keys]
        assert len(keys) == len(set(keys))


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
