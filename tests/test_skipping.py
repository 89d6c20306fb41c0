"""A test that was skipped says why, without an option."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_summary_has_one_line_for_a_skipped_test(tmp_path):
    (tmp_path / "test_a.py").write_text("import pytest\n\n\ndef test_a():\n    pytest.skip('no scanner here')\n")
    settings = Path(__file__).parents[1] / "pyproject.toml"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-c", str(settings), "--rootdir", str(tmp_path)]
    done = subprocess.run([*command, str(tmp_path / "test_a.py")], capture_output=True, text=True, cwd=tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert line.endswith("no scanner here")
