"""
Nuclei of a slide as GeoJSON, GeoParquet and DICOM: time, size and peak memory of writing and of reading.

    python benchmarks/tables.py [--nuclei 100000] [--seed 0]

Synthetic nuclei (ellipses of 40 to 400 pixels) on a slide of 40,000 x 40,000 pixels are written tile by tile as
`segmenting_slide` does, each kind alone, and read by geopandas (pip install -r requirements-dev.txt) or highdicom (pip
install -r requirements-dicom.txt, else DICOM is left out), each in a process of its own. Memory is the peak of that
process, libraries and mapped files included (`--nuclei 100` shows them alone).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import describe_machine, peak_memory

HELPERS = Path(__file__).resolve().parents[1] / "tests" / "helpers"
SHAPES, SIDE, PER_TILE = 3000, 24, 400
SLIDE, TILE = 40_000, 1000  # sides in pixels
MEASURES = ("perimeter", "eccentricity", "major", "minor", "haematoxylin", "probability", "uncertainty")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nuclei", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)  # what one process does
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(_step(*args.step, Path(args.folder), args.nuclei, args.seed)))
        return
    print(describe_machine())
    print(f"{args.nuclei:,} nuclei\n{'':12}{'write s':>10}{'peak MB':>10}{'size MB':>10}{'read s':>10}{'peak MB':>10}")
    dicom = ("dicom_ann", "dicom_seg") if importlib.util.find_spec("highdicom") else ()
    for output in ("geojson", "parquet", *dicom):
        with tempfile.TemporaryDirectory() as folder:
            written, read = (_in_process(step, output, folder, args) for step in ("write", "read"))
        print(
            f"{output:12}{written['seconds']:10.1f}{written['memory']:10.0f}{written['size']:10.1f}"
            f"{read['seconds']:10.1f}{read['memory']:10.0f}"
        )


def _in_process(step: str, output: str, folder: str, args: argparse.Namespace) -> dict:
    command = [sys.executable, __file__, "--step", step, output, "--folder", folder, "--nuclei", str(args.nuclei)]
    done = subprocess.run([*command, "--seed", str(args.seed)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _step(step: str, output: str, folder: Path, count: int, seed: int) -> dict:
    from scripts.slides.nuclei_output import OUTPUTS

    path = folder / OUTPUTS[output]
    if step == "write":
        nuclei = _nuclei(seed)
        seconds = _write(nuclei, output, folder, count, seed)
    else:
        start = time.perf_counter()
        _read(path, output, count)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "memory": peak_memory() / 1e6, "size": os.path.getsize(path) / 1e6}


def _read(path: Path, output: str, count: int) -> None:
    if output == "dicom_ann":
        from highdicom.ann import annread

        assert len(annread(path).get_annotation_groups()[0].get_graphic_data("2D")) == count
    elif output == "dicom_seg":
        from highdicom.seg import segread

        assert segread(path).get_total_pixel_matrix(1, TILE, 1, TILE).any()
    else:
        import geopandas

        assert len(geopandas.read_file(path) if output == "geojson" else geopandas.read_parquet(path)) == count


def _nuclei(seed: int) -> list:
    """Ellipses, turned and of many sizes."""
    from scripts.nuclei.measures import describe_nuclei

    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5
    nuclei = []
    for _ in range(SHAPES):
        (a, b), turn = random.uniform(3.6, 11.3, 2), random.uniform(0, np.pi)
        u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        label = ((u / a) ** 2 + (v / b) ** 2 <= 1).astype(int)
        nuclei += describe_nuclei(label, random.random(label.shape), random.integers(0, 256, (3, *label.shape)))
    return nuclei


def _write(nuclei: list, output: str, folder: Path, count: int, seed: int) -> float:
    """Seconds of writing alone."""
    from dataclasses import replace

    from scripts.nuclei.geojson import NucleusFormat
    from scripts.slides.journal import Journal
    from scripts.slides.nuclei_output import NucleiOutput

    random = np.random.default_rng(seed)
    dicom = _dicom(folder) if output.startswith("dicom") else None
    files = NucleiOutput(NucleusFormat("slide.svs", 0.25), [output], dicom)
    journal, seconds = Journal(folder, files.heads, {}), 0.0
    for before in range(0, count, PER_TILE):
        several = min(PER_TILE, count - before)
        chosen = random.integers(0, len(nuclei), several)
        places = random.integers(0, TILE - SIDE, (several, 2))
        tile = []
        for index, place in zip(chosen, places):
            nucleus = nuclei[index]
            # measures differ from nucleus to nucleus, as in tissue: equal ones would be stored in less
            measures = {name: getattr(nucleus, name) * random.uniform(0.9, 1) for name in MEASURES}
            place = {"polygon": nucleus.polygon + place, "x": nucleus.x + place[0], "y": nucleus.y + place[1]}
            tile.append(replace(nucleus, **place, **measures))
        start = time.perf_counter()
        row, column = divmod(before // PER_TILE, SLIDE // TILE)
        journal.write(files.of_tile(tile, (column * TILE, row * TILE), before), {})
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    journal.finish(files.tails)
    files.finish(folder, (SLIDE, SLIDE), 0.25, count)
    return seconds + time.perf_counter() - start


def _dicom(folder: Path):
    """Writes for a slide of which there is only the header."""
    sys.path.append(str(HELPERS))
    import pydicom
    from dicom_slides import save_dicom
    from scripts.slides.dicom_output import DicomOutput
    from scripts.slides.dicom_source import DicomSource

    path = save_dicom(folder / "slide.dcm", np.zeros((512, 512, 3), np.uint8), "1.2.3", tile=512)
    header = pydicom.dcmread(path, stop_before_pixels=True)
    header.TotalPixelMatrixRows = header.TotalPixelMatrixColumns = SLIDE
    header.NumberOfFrames = (-(-SLIDE // 512)) ** 2
    return DicomOutput(DicomSource(header, header, 1.0), "Nucleus", "0", None)


if __name__ == "__main__":
    main()
