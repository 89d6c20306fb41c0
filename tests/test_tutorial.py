"""The tutorial notebook, executed from its first cell to its last, offline."""

from __future__ import annotations

import pytest


def test_the_tutorial_runs_to_its_end(bundle_root, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(bundle_root / "docs" / "tutorial.ipynb", as_version=4)
    for cell in notebook.cells:  # a folder of its own, for runs beside this one
        cell.source = cell.source.replace("output/tutorial", str(tmp_path))
    resources = {"metadata": {"path": str(bundle_root / "docs")}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    assert (tmp_path / "runs" / "mine" / "comparison_testing" / "comparison.md").is_file()
    assert (tmp_path / "model.ts").is_file() and (tmp_path / "segmented" / "summary.csv").is_file()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "the exported network finds the same nuclei" in printed
