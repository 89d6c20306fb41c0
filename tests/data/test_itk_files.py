"""Files that ITK reads, and the working directory, which ITK moves while it loads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import imagecodecs
import numpy as np
import pytest
from archives import save


@pytest.fixture
def images(tmp_path):
    """Three images of which the second needs ITK."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    for name in ("a", "c"):
        save(folder / f"{name}.png", rng.integers(0, 256, (64, 64, 3), np.uint8))
    (folder / "b.png").write_bytes(imagecodecs.png_encode(rng.integers(0, 65536, (64, 64, 3), np.uint16)))
    return folder


def test_loading_itk_moves_no_thread_elsewhere(bundle_root, images):
    """In a process of its own, for ITK loads only once. Threads read at once, as the leakage guard does."""
    program = """
        import os, sys
        from concurrent.futures import ThreadPoolExecutor
        moves, chdir = [], os.chdir
        os.chdir = lambda path: (moves.append(path), chdir(path))
        from scripts.data.readers import read_image
        with ThreadPoolExecutor(8) as pool:
            shapes = list(pool.map(lambda name: read_image(f"images/{name}.png").shape, "bac" * 8))
        assert set(shapes) == {(64, 64, 3)}
        assert not moves, moves
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=images.parent,
        env={**os.environ, "PYTHONPATH": str(bundle_root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_16_bit_png_between_others_is_segmented_with_relative_paths(bundle_root, images):
    command = [sys.executable, "-m", "monai.bundle", "run", "inferring", "--config_file"]
    bundle = os.path.relpath(bundle_root, images.parent)
    command += [f"{bundle}/configs/inference.json", "--bundle_root", bundle, "--dataset_dir", "images"]
    done = subprocess.run([*command, "--output_dir", "out"], cwd=images.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    written = {path.name for path in (images.parent / "out").glob("*_mask.png")}
    assert written == {"a_mask.png", "b_mask.png", "c_mask.png"}
