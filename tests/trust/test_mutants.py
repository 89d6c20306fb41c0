"""The mutants once found by hand are still of this code: `benchmarks/mutants.py` runs the tests against them."""

from __future__ import annotations

import importlib.util
import sys

from conftest import REPO


def test_every_mutant_found_by_hand_can_still_be_made(monkeypatch):
    spec = importlib.util.spec_from_file_location("mutants", REPO / "benchmarks" / "mutants.py")
    mutants = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mutants", mutants)  # its data class looks there
    spec.loader.exec_module(mutants)
    made = 0
    for module, tests in mutants.MODULES.items():
        assert all((REPO / "tests" / name).is_file() for name in tests)
        made += len(mutants.found_by_hand(module, (REPO / "bundle" / "scripts" / module).read_text()))
    assert made == len(mutants.FOUND) == 10
