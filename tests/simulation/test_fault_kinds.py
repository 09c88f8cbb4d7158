from __future__ import annotations

import pytest

from foreserve.errors import ConfigError
from foreserve.simulation.fault_kinds import FAULTS, LoadSpike, SlowWorker, WorkerDeath, read_faults, words_of


def test_faults_are_read_by_name_with_their_parameters():
    assert read_faults("worker_death,slow_worker:factor=4;for_s=10,load_spike:times=5,how=sooner") == [
        WorkerDeath(),
        SlowWorker(factor=4.0, for_s=10.0),
        LoadSpike(times=5.0, how="sooner"),
    ]


def test_each_fault_alone_by_its_defaults():
    for name, kind in FAULTS.items():
        assert read_faults(name) == [kind()]


def test_words_of_faults_are_read_as_the_same():
    words = "worker_death:at_once=3,load_spike:times=2.5;how=sooner,client_retry"
    assert read_faults(words_of(read_faults(words))) == read_faults(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("worker_deth", "no fault is called 'worker_deth'; did you mean 'worker_death'? valid: worker_death, slow_wor"),
        ("slow_worker:facter=4", "slow_worker.facter: unknown key 'facter'; did you mean 'factor'?"),
        ("slow_worker:factor=fast", "slow_worker.factor is 'fast': expected float"),
        ("slow_worker:factor=0", "`factor` is 0.0; it must be within 1e-06 and 1,000,000"),
        ("worker_death:every_s=1e-9", "`every_s` is 1e-09; it must be within 0.001 and 1,000,000,000"),
        ("load_spike:times=1e9", "`times` is 1000000000.0; it must be within 0.01 and 1,000"),
        ("worker_death:at_once=0", "`at_once` is 0; it must be within 1 and 1,000"),
        ("worker_death:at_once=100000000000000000000", "at_once"),
        ("client_retry:most=5000", "`most` is 5000; it must be within 1 and 20"),
        ("mispredicted_lengths:noise=800", "`noise` is 800.0"),
        ("load_spike:how=faster", "load_spike.how"),
        ("client_cancel:share=1.5", "`share` is 1.5; it must be within 0 and 1"),
        ("worker_death:3", "'worker_death:3' is no fault and no parameter"),
        ("factor=3", "is no fault"),
        (" , ", "it names no fault; valid: worker_death"),
    ],
)
def test_what_is_wrong_is_told_with_the_valid_choices(words: str, said: str):
    with pytest.raises(ConfigError) as error:
        read_faults(words)
    assert said in str(error.value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e30"])
def test_no_parameter_is_beyond_what_can_be_simulated(value: str):
    numbers = [(name, each) for name, kind in FAULTS.items() for each in kind.__struct_fields__ if each != "how"]
    assert len(numbers) > 15
    for name, each in numbers:
        with pytest.raises(ConfigError, match=f"{name}.*{each}"):
            read_faults(f"{name}:{each}={value}")
