"""
How far does one get without learning? A baseline of scikit-image and scipy, scored by our own metrics.

    python benchmarks/classical.py --dataset_dir DATA [--domains tnbc monuseg] [--split testing]

Haematoxylin by colour deconvolution, its background by morphological reconstruction, Otsu's threshold for each image,
nuclei by a watershed from blobs (LoG) of the distance to the background. Sizes are in pixels of 0.25 µm; all were set
on the validation parts of `tnbc` and `monuseg`. Prints means over images, and CPU seconds from an image to its nuclei.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from machine import describe_machine  # puts the bundle on the path
from scipy import ndimage
from scripts.data.domain_folders import domain_list
from scripts.data.domains import load_items
from scripts.data.readers import read_image, read_label
from scripts.nuclei.metrics import image_metrics
from skimage.color import rgb2hed
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.morphology import reconstruction
from skimage.segmentation import watershed

SMOOTHING = 1.0  # of the haematoxylin
BACKGROUND = 32  # what is wider than twice this belongs to it
CENTRES = 6.0  # scale of the blobs that are taken for centres of nuclei
APART = 6  # centres are at least
MIN_AREA = 100  # of a nucleus
SHOWN = ("dice", "aji", "pq", "hd95_px")


def segment(image: np.ndarray) -> np.ndarray:
    """Nuclei of an (H, W, 3) RGB image, as an (H, W) map of ids."""
    stain = ndimage.gaussian_filter(rgb2hed(image)[..., 0], SMOOTHING)
    # opening by reconstruction, which keeps the outline of whatever it keeps
    stain -= reconstruction(ndimage.minimum_filter(stain, 2 * BACKGROUND + 1), stain)
    mask = ndimage.binary_fill_holes(stain > threshold_otsu(stain))
    blobs = -ndimage.gaussian_laplace(ndimage.distance_transform_edt(mask), CENTRES)
    centres = peak_local_max(blobs, min_distance=APART, labels=ndimage.label(mask)[0], exclude_border=False)
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(centres.T)] = np.arange(1, len(centres) + 1)
    nuclei = watershed(-blobs, markers, mask=mask)
    nuclei[np.bincount(nuclei.ravel())[nuclei] < MIN_AREA] = 0
    return nuclei


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True, help="folder of domains with a split.json each")
    parser.add_argument("--domains", nargs="+", default=["tnbc", "monuseg"])
    parser.add_argument("--split", default="testing")
    args = parser.parse_args()
    print(describe_machine())
    print(f"{'':24}{'images':>8}{'Dice':>8}{'AJI':>8}{'PQ':>8}{'HD95 px':>9}{'s an image':>12}")
    for name in args.domains:
        rows = []
        for item in load_items(domain_list(args.dataset_dir, name, "none"), args.split, required=True):
            image, true = read_image(item["image"]), read_label(item["label"])
            start = time.process_time()
            found = segment(image)
            seconds = time.process_time() - start
            scores = image_metrics(found > 0, true > 0, found, true)
            rows.append([*(scores[key] for key in SHOWN), seconds])
        dice, aji, pq, hd95, seconds = np.mean(rows, axis=0)
        of = f"{name} {args.split}"
        print(f"{of:24}{len(rows):8}{dice:8.3f}{aji:8.3f}{pq:8.3f}{hd95:9.1f}{seconds:12.2f}", flush=True)


if __name__ == "__main__":
    main()
