"""
Preparing of a published archive: 30 images of 1000x1000 with about 600 polygons each, in the layout of MoNuSeg.

    python benchmarks/preparing.py [--images 30] [--nuclei 600] [--workers 2] [--keep FOLDER]

Draws the images, packs them as the challenge did (TIFF and Aperio XML, in a zip file), and runs the verb `preparing`
on the archive as a user would. Prints the seconds of the verb as a whole, start included, those of a second run that
finds everything done, and the nuclei that were drawn and found. On a busy machine only the seconds of CPU mean
something. With --keep the archive and the domain stay in a folder, to look at.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import tifffile
from machine import BUNDLE, describe_machine
from scipy import ndimage
from skimage.draw import polygon

SIDE = 1000


def draw(nuclei: int, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """An image (1000, 1000, 3) and the outlines (n, 2), x and y, of its nuclei, most in the middle of a grid's cell."""
    ground = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE, 3)), (20, 20, 0)) * 60
    image, outlines = np.array([225, 180, 215.0]) + ground, []
    cells = int(np.ceil(np.sqrt(nuclei)))
    angle = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    for cell in rng.permutation(cells**2)[:nuclei]:
        centre = (np.array(divmod(cell, cells)) + 0.5) * SIDE / cells + rng.uniform(-5, 5, 2)
        radius = rng.uniform(7, 13) * (1 + 0.12 * np.cos(2 * angle + rng.uniform(0, 6)))
        outline = np.rint(centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)).clip(0, SIDE - 1)
        image[polygon(outline[:, 1], outline[:, 0], (SIDE, SIDE))] = rng.uniform(60, 120, 3)
        outlines.append(outline.astype(int))
    image = ndimage.gaussian_filter(image, (1, 1, 0)) + rng.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8), outlines


def annotation(outlines: list[np.ndarray]) -> str:
    """An Aperio file, with the attributes that MoNuSeg's have."""
    lines = ['<Annotations MicronsPerPixel="0.252000">', '\t<Annotation Id="1" Name="" ReadOnly="0" Type="4">']
    lines += ["\t\t<Regions>", '\t\t\t<RegionAttributeHeaders><AttributeHeader Id="9999" Name="Region"/>'
              "</RegionAttributeHeaders>"]  # fmt: skip
    for number, outline in enumerate(outlines, start=1):
        lines += [f'\t\t\t<Region Id="{number}" Type="0" Zoom="1" NegativeROA="0">', "\t\t\t\t<Attributes/>"]
        lines += ["\t\t\t\t<Vertices>", *(f'\t\t\t\t\t<Vertex X="{x}" Y="{y}"/>' for x, y in outline)]
        lines += ["\t\t\t\t</Vertices>", "\t\t\t</Region>"]
    return "\n".join([*lines, "\t\t</Regions>", "\t</Annotation>", "</Annotations>"])


def make_archive(path: Path, images: int, nuclei: int) -> int:
    """Write the zip file; returns how many nuclei were drawn."""
    drawn = 0
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as archive:
        for number in range(images):
            image, outlines = draw(nuclei, np.random.default_rng(number))
            name, buffer = f"TCGA-B{number // 10}-{5000 + number}-01Z-00-DX1", BytesIO()
            tifffile.imwrite(buffer, image, photometric="rgb")
            archive.writestr(f"MoNuSeg 2018 Training Data/Tissue Images/{name}.tif", buffer.getvalue())
            archive.writestr(f"MoNuSeg 2018 Training Data/Annotations/{name}.xml", annotation(outlines))
            drawn += len(outlines)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--nuclei", type=int, default=600, help="in each image")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", help="a folder for the archive and the domain, in which neither is yet")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(args.keep or folder).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        archive = folder / "synthetic_monuseg.zip"
        drawn = make_archive(archive, args.images, args.nuclei)
        settings = {"config_file": "configs/prepare.json", "dataset": "monuseg", "source": archive}
        settings |= {"output_dir": folder / "domains", "workers": args.workers}
        command = [sys.executable, "-m", "monai.bundle", "run", "preparing"]
        command += [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
        seconds, cpu = [], []
        for _ in range(2):
            start, before = time.perf_counter(), os.times()
            subprocess.run(command, cwd=BUNDLE, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            seconds.append(time.perf_counter() - start)
            after = os.times()
            spent = (after.children_user, after.children_system, -before.children_user, -before.children_system)
            cpu.append(sum(spent))
        about = json.loads((folder / "domains" / "monuseg" / "dataset.json").read_text())
    print(f"{describe_machine()}; {args.workers} workers, archive drawn before")
    print(f"{about['images']} images: {seconds[0]:.0f} s ({cpu[0]:.0f} s of CPU)")
    print(f"again, when all is done: {seconds[1]:.0f} s ({cpu[1]:.0f} s of CPU), all of it starting up")
    print(f"{drawn} nuclei drawn, {about['nuclei']} found")


if __name__ == "__main__":
    main()
