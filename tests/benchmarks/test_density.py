from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
from benchmarks.common import Report
from benchmarks.density import GIB, MIB, Grown, mapped, told


def test_what_fits_follows_from_the_first_and_from_what_each_more_takes():
    grown = Grown({1: 400 * MIB, 2: 430 * MIB, 4: 490 * MIB}, [0.1])
    assert grown.more == 30 * MIB
    assert grown.fit(400 * MIB) == 1
    assert grown.fit(459 * MIB) == 2
    assert grown.fit(GIB) == 1 + (1024 - 400) // 30


def test_figures_without_a_model_are_of_the_one_that_gains_least():
    report = Report("density", {})
    shared = Grown({1: 300 * MIB, 8: 370 * MIB}, [0.1])
    found = {
        "good": (shared, Grown({1: 300 * MIB, 8: 2400 * MIB}, [3.0]), 90 * MIB),
        "less": (shared, Grown({1: 200 * MIB, 8: 740 * MIB}, [2.0]), 90 * MIB),
    }
    told(report, found)
    assert report.figures["pss_saving_8"] == pytest.approx(2.0)
    assert report.figures["good_pss_saving_8"] == pytest.approx(2400 / 370)
    assert report.figures["good_one_more_private_mib"] == pytest.approx(300.0)
    assert report.figures["functions_in_8gb_vs_private"] == report.figures["less_in_8gb_vs_private"]
    # One of many functions has weights of its own, and shares the imports.
    assert report.figures["good_different_in_8gb_vs_private"] < report.figures["good_in_8gb_vs_private"]


def test_functions_that_differ_do_not_share_a_file_that_is_mapped():
    private = Grown({1: 300 * MIB, 2: 340 * MIB}, [0.1], mapped=160 * MIB)
    assert private.different(500 * MIB, private.mapped) == 2.0
    assert private.different(100 * MIB, private.mapped) == 0.0


def test_what_is_mapped_of_a_file_is_what_was_read_of_it(tmp_path: Path):
    file = tmp_path / "weights"
    file.write_bytes(bytes(8 * mmap.PAGESIZE))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert len(bytes(view)) == 8 * mmap.PAGESIZE
        assert mapped([os.getpid()], file) == 8 * mmap.PAGESIZE
        assert mapped([os.getpid()], tmp_path / "other") == 0
