from __future__ import annotations

import platform
from pathlib import Path

from foreserve.simulation.machine import cores, machine, told


def test_a_machine_is_told_without_its_name():
    assert machine().endswith(f"{cores()} core{'s' if cores() > 1 else ''}")
    assert platform.node() not in machine()


def test_values_are_found_by_their_key(tmp_path: Path):
    file = tmp_path / "info"
    file.write_text("vendor\t: one\nmodel name\t: A: fast one\nmodel name\t: another\n")
    assert told(str(file), "model name") == "A: fast one"
    assert told(str(file), "model") == told(str(tmp_path / "nowhere"), "x") == ""
