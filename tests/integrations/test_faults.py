import logging

import pytest

from foreserve.integrations.faults import Faults


def test_faults_are_counted_and_logged_ever_more_rarely(caplog):
    faults = Faults(logging.getLogger("here"), "the policy")
    for _ in range(100):
        with faults:
            raise ValueError("odd")
    assert faults.count == 100
    assert len(caplog.records) == 7
    assert "the policy failed (64 times so far)" in caplog.text
    assert "ValueError: odd" in caplog.text


def test_what_ends_a_program_passes():
    faults = Faults(logging.getLogger("here"), "the policy")
    with pytest.raises(KeyboardInterrupt), faults:
        raise KeyboardInterrupt
    with faults:
        pass
    assert faults.count == 0
