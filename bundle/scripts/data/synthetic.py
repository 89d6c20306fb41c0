from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from scripts.errors import DataError
from scripts.files import write_json

__all__ = ["make_synthetic", "synthetic_tile"]

logger = logging.getLogger(__name__)

NOTE = "Synthetic drawings that resemble H&E, for tests. No tissue, no patient, no clinical meaning."
COUNTS = {"training": 10, "validation": 3, "testing": 4}
SIZE = 256
TILES_PER_PATIENT = 2
# optical densities (R, G, B) of haematoxylin and eosin at unit amount; radius of a nucleus in pixels; sigmas in pixels
DOMAINS = {
    "synthetic_pink": {
        "haematoxylin": (0.72, 0.74, 0.36), "eosin": (0.07, 0.52, 0.18),
        "radius": 9.5, "nuclei": 62, "blur": 0.6, "noise": 2.5, "mpp": 0.25,
    },
    "synthetic_dark": {
        "haematoxylin": (0.95, 1.05, 0.55), "eosin": (0.30, 0.72, 0.32),
        "radius": 12.0, "nuclei": 46, "blur": 0.8, "noise": 3.5, "mpp": 0.25,
    },
    "synthetic_blurred": {
        "haematoxylin": (0.62, 0.52, 0.22), "eosin": (0.12, 0.36, 0.10),
        "radius": 7.0, "nuclei": 95, "blur": 1.7, "noise": 1.5, "mpp": 0.4,
    },
}  # fmt: skip


def make_synthetic(root: str | os.PathLike, counts: Mapping[str, int] = COUNTS, seed: int = 0) -> Path:
    """
    Make three domains of synthetic H&E-like tiles with instance labels, differing in stain, nucleus size and blur.

    ``root/<domain>/`` holds ``images/*.png`` (256x256 RGB), ``labels/*.png`` (16-bit), ``split.json`` and
    ``dataset.json``; ``root/domains.json`` names the default primary. The same seed gives the same bytes. The folder
    is built aside and renamed, so it is whole whenever it exists; a whole one is left alone.

    Args:
        root: the folder to make.
        counts: tiles per split in each domain.
        seed: seed of all drawings.

    Returns:
        ``root``.

    Raises:
        DataError: when ``root`` exists with other content.
    """
    root = Path(root)
    if (root / "domains.json").is_file():
        return root
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(root, "it exists but holds no synthetic data", "Move it away or choose another folder.")
    logger.info("Making synthetic images (drawings, not tissue) in %s", root)
    partial = root.with_name(f".{root.name}.{secrets.token_hex(6)}.partial")
    partial.mkdir(parents=True)  # new: what is removed below is ours
    try:
        for number, name in enumerate(DOMAINS):
            _make_domain(partial / name, name, counts, (seed, number))
        about = {"synthetic": True, "note": NOTE, "primary": next(iter(DOMAINS)), "seed": seed}
        write_json(partial / "domains.json", about)
        os.rename(partial, root)
    except OSError:
        if not (root / "domains.json").is_file():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _make_domain(folder: Path, name: str, counts: Mapping[str, int], seed: tuple[int, ...]) -> None:
    style = DOMAINS[name]
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    split: dict[str, list[dict]] = {}
    patient = 0
    for part_number, (part, count) in enumerate(counts.items()):
        split[part] = []
        for tile in range(count):
            patient += tile % TILES_PER_PATIENT == 0
            file = f"{name}_p{patient:02d}_{tile % TILES_PER_PATIENT + 1}.png"
            image, label = synthetic_tile(style, np.random.default_rng([*seed, part_number, tile]))
            Image.fromarray(image).save(folder / "images" / file)
            Image.fromarray(label.astype(np.uint16)).save(folder / "labels" / file)
            entry = {"image": f"images/{file}", "label": f"labels/{file}", "patient": f"synthetic_{patient:02d}"}
            split[part].append(entry)
    write_json(folder / "split.json", split)
    about = {"name": name, "synthetic": True, "note": NOTE, "stain": "drawn H&E", "license": "Apache-2.0", **style}
    write_json(folder / "dataset.json", about)


def synthetic_tile(style: Mapping, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """
    Draw one tile: amounts of haematoxylin and eosin first, then colour by Beer-Lambert, then blur and noise.

    Args:
        style: an entry of ``DOMAINS``.
        rng: source of randomness.

    Returns:
        image (256, 256, 3) uint8 and instance label (256, 256) int32.
    """
    angle = rng.uniform(0, np.pi)  # of the fibres
    lumen = _smooth(_noise(rng, 16) - rng.uniform(1.0, 1.7), 0.15)
    fibres = _fibres(rng, angle)
    label, texture = _nuclei(style, rng, lumen > 0.3, angle)
    inside = ndimage.gaussian_filter((label > 0).astype(float), 0.5)
    halo = ndimage.gaussian_filter((label > 0).astype(float), 5, truncate=2.5)

    tissue = 1 - lumen
    eosin = tissue * (0.55 + 0.16 * fibres + 0.10 * _noise(rng, 20) + 0.25 * halo) * (1 - 0.5 * inside)
    haematoxylin = tissue * (0.06 + 0.03 * _noise(rng, 3) + 0.12 * halo) * (1 - inside) + inside * texture
    stains = np.array([style["haematoxylin"], style["eosin"]]) * rng.uniform(0.92, 1.08, (2, 3))
    amounts = np.stack([haematoxylin * rng.uniform(0.85, 1.15), eosin * rng.uniform(0.8, 1.2)], axis=-1).clip(0)
    image = 246 * np.exp(-amounts @ stains)
    image = ndimage.gaussian_filter(image, (style["blur"], style["blur"], 0))
    image += rng.normal(0, style["noise"], image.shape)
    return np.rint(image).clip(0, 255).astype(np.uint8), label


def _nuclei(style: Mapping, rng: np.random.Generator, forbidden: np.ndarray, angle: float):
    """Instance label (H, W) int32 and haematoxylin amount inside the nuclei (H, W); nuclei touch but never overlap."""
    label = np.zeros((SIZE, SIZE), np.int32)
    amount = np.zeros((SIZE, SIZE))
    chromatin, rows_columns = _noise(rng, 1.1), np.indices(label.shape)
    wanted, number = int(style["nuclei"] * rng.uniform(0.7, 1.2)), 0
    for _ in range(4 * wanted):
        if number == wanted:
            break
        spindle = rng.random() < 0.25  # a fibroblast, lying along the fibres
        radius = style["radius"] * rng.lognormal(0, 0.16)
        long, short = radius * (1.5 if spindle else 1.08), radius * (0.45 if spindle else rng.uniform(0.72, 1.0))
        turn = angle + rng.normal(0, 0.2) if spindle else rng.uniform(0, np.pi)
        centre = rng.uniform(-3, SIZE + 3, 2)
        box = tuple(slice(max(int(c - 2 * radius), 0), max(int(c + 2 * radius), 0)) for c in centre)
        y, x = (grid[box] - c for grid, c in zip(rows_columns, centre, strict=True))
        u, v = (np.cos(turn) * x + np.sin(turn) * y) / long, (np.cos(turn) * y - np.sin(turn) * x) / short
        theta = np.arctan2(v, u)
        waves = sum(rng.normal(0, 0.09 / k) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4))
        depth = np.hypot(u, v) / (1 + waves)  # 0 at the centre, 1 at the border
        shape = depth < 1
        new = shape & (label[box] == 0)
        if new.sum() < max(25, 0.88 * shape.sum()) or (shape & forbidden[box]).any():
            continue
        number += 1
        label[box][new] = number
        pale = rng.uniform(0.75, 1.25) * (1.15 if spindle else 1.0)
        rim = 0.25 * depth**4
        nucleolus = 0.5 * np.exp(-((u - rng.uniform(-0.4, 0.4)) ** 2 + (v - rng.uniform(-0.4, 0.4)) ** 2) / 0.025)
        amount[box][new] = (pale * (0.72 + 0.13 * chromatin[box] + rim + (0 if spindle else nucleolus)))[new]
    return label, amount


def _fibres(rng: np.random.Generator, angle: float) -> np.ndarray:
    """Wavy streaks along an angle, mean 0 and deviation 1."""
    streaks = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), (1.3, 14), mode="wrap", truncate=2.5)
    y, x = np.indices(streaks.shape)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    wave = 9 * _noise(rng, 24)
    turned = ndimage.map_coordinates(streaks, [across + wave, along], order=1, mode="grid-wrap")
    return (turned - turned.mean()) / turned.std()


def _noise(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Smooth noise (H, W) with mean 0 and deviation 1."""
    noise = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), sigma, mode="wrap", truncate=2.5)
    return (noise - noise.mean()) / noise.std()


def _smooth(value: np.ndarray, width: float) -> np.ndarray:
    """Soft step from 0 to 1 around 0."""
    return 1 / (1 + np.exp(-value / width))
