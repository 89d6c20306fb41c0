from __future__ import annotations

import functools
import hashlib
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import CacheDataset, Dataset, MetaTensor, PersistentDataset
from monai.transforms import Compose, Randomizable, RandomizableTrait
from monai.utils import convert_to_tensor
from scripts.data.annotation_style import set_gaps
from scripts.data.cache_key import Recipe, content_of
from scripts.data.domains import load_items
from scripts.data.encoding import DrawVariant, EncodeFeatures
from scripts.data.holding_out import training_span
from scripts.data.pipelined import pipelined
from scripts.errors import DataError, all_of, root_cause
from scripts.files import LEFT, atomic_path
from scripts.nuclei.targets import CHANNELS
from scripts.owned import OwnFiles
from scripts.phases import PHASES
from scripts.wording import command, counted
from tqdm import tqdm

__all__ = ["FeatureDataset", "cache_usage", "clear_cache", "training_dataset"]

CACHE_MODES = ("on", "off")
TOGETHER = 4  # windows of an image that are encoded at once: of 512 pixels they need the memory of one tile of 1024


def training_dataset(
    data: Sequence[Mapping[str, Any]] | None,
    transform: Compose,
    cache: str,
    cache_dir: str | os.PathLike,
    windows_per_image: int,
    window_size: int,
    cache_rate: float,
    domains: Sequence[dict] = (),
    limit_groups: int | None = None,
    limit_draw: int = 0,
    gaps: str = "auto",
    held_out: float = 0.0,
    teacher: Callable[[Sequence[Mapping[str, Any]]], list[dict]] | None = None,
) -> Dataset:
    """
    The training data: features in a filled cache, or images that each step encodes.

    Args:
        data: items of ``load_items``. None, or items without a domain because a server handed them over (see
            ``training_domains``, which makes them the primary), takes the training part of ``domains`` instead.
        transform: from an item to a part of a batch, see :func:`scripts.data.encoding.training_steps`.
        cache: "on" gives a :class:`FeatureDataset`, "off" MONAI's ``CacheDataset`` of decoded images.
        cache_dir, windows_per_image, window_size: with "on", see :class:`FeatureDataset`.
        cache_rate: with "off", share of the images that is held in memory.
        domains: the domain list.
        limit_groups, limit_draw: of the primary domain, see ``load_items``.
        gaps: what becomes of gaps between nuclei, see :func:`scripts.data.annotation_style.set_gaps`.
        held_out: share of each image that is left out, see :func:`scripts.data.holding_out.training_span`.
        teacher: gives a label to items that have none; None leaves them without.

    Raises:
        ValueError: for another value of ``cache``.
        DataError: when images cannot be read, or the disk is too small.
    """
    if cache not in CACHE_MODES:
        raise ValueError(f"cache must be {' or '.join(CACHE_MODES)}, got {cache!r}")
    if not data or "domain" not in data[0]:
        data = load_items(domains, "training", limit_groups, limit_draw=limit_draw)
    data = set_gaps(data, domains, gaps)  # of those who drew them: a teacher draws no gaps
    if teacher is not None:
        data = teacher(data)
    data = training_span(data, held_out)
    if cache == "off":
        return CacheDataset(data, transform, cache_rate=cache_rate, num_workers=0)
    dataset = FeatureDataset(data, transform, cache_dir, windows_per_image, window_size).fill()
    idist.barrier()  # of several processes, each has filled its share
    if idist.get_rank() == 0:
        print(f"{cache_usage(dataset)}; {command('clearing_cache')} removes them", file=sys.stderr)
    return dataset


def cache_usage(dataset: Dataset) -> str:
    """
    One line on the files of a filled cache, and on those in its folder that other settings have left there.

    Raises:
        ValueError: when the data are not cached.
    """
    if not isinstance(dataset, FeatureDataset):
        raise ValueError("there is nothing to cache: the data are set up with cache 'off'; use --cache on")
    own = {dataset.path(i, n) for i in range(len(dataset)) for n in range(dataset.windows_per_image)}
    # Path.glob takes hidden files too: not what another process is writing at this moment
    stored = [file for file in dataset.cache_dir.glob("*.pt") if not file.name.startswith(".")]
    others = [file for file in stored if file not in own]
    size, rest = (sum(file.stat().st_size for file in files) / 1e9 for files in (own, others))
    line = f"{counted(len(own), 'encoded window')}, {size:.2f} GB, in {dataset.cache_dir}"
    if others:
        line += f"; {counted(len(others), 'other file')} there, {rest:.2f} GB, made with other settings"
    return line


def clear_cache(cache_dir: str | os.PathLike) -> None:
    """
    Remove the stored features in a folder that its list says are ours, and print what that freed; the next training
    encodes anew.

    Raises:
        DataError: when there is no such folder.
    """
    folder = Path(cache_dir)
    if not folder.is_dir():
        raise DataError(folder, "there is no such folder of stored features", "Set cache_dir or output_dir.")
    files, freed, removed = OwnFiles(folder), 0, 0
    for name in files:
        path = folder / name
        if path.is_file():
            freed, removed = freed + path.stat().st_size, removed + 1
        files.remove(name)
    left = files.others()
    print(f"removed {counted(removed, 'file')} of stored features, {freed / 1e9:.2f} GB, from {folder}")
    if left:  # a version before 0.6.0 kept no list
        print(f"left {counted(len(left), 'file')} there that no list says to be ours, such as {left[0].name}")


class FeatureDataset(PersistentDataset, Randomizable):
    """
    MONAI's ``PersistentDataset`` of encoded windows: what the frozen encoder makes of an image is computed once.

    ``transform`` starts with deterministic transforms, among them ``DrawVariant`` and ``EncodeFeatures``; what these
    give is stored, one file for each window of an item. The random ones after them, such as ``RandFeatureCrop``, run
    at each access, on a window drawn at random.

    The name of a file is a digest of the bytes of image and label, the item's gaps and span, the number of the window,
    the encoder's fingerprint, and the settings and versions of the deterministic transforms
    (:mod:`scripts.data.cache_key`); where the image is resampled also of its pixel size and the wanted one. So a
    changed image, label, setting, encoder or version never meets an old file; it only leaves it unused. The domain, the
    run's seed and where files lie are not part of it: runs with other roles of the same images share the files.

    Args:
        data: items with ``image`` and, unless ``unlabelled``, ``label`` (paths), ``domain``, and optionally ``mpp``.
        transform: as described.
        cache_dir: folder of the files.
        windows_per_image: augmented windows of each item.
        window_size: greatest side of a window in pixels, from which the needed space is estimated.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Compose,
        cache_dir: str | os.PathLike,
        windows_per_image: int = 8,
        window_size: int = 512,
    ) -> None:
        if windows_per_image < 1:
            raise ValueError(f"windows_per_image must be at least 1, got {windows_per_image}")
        PersistentDataset.__init__(self, data, transform.flatten(), cache_dir)
        self.windows_per_image, self.window_size = windows_per_image, window_size
        self._first_random = self.transform.get_index_of_first(lambda step: isinstance(step, RandomizableTrait))
        stored = self.transform.transforms[: self._first_random]
        encoders = [step for step in stored if isinstance(step, EncodeFeatures)]
        if not encoders:
            raise ValueError("the transform must encode features before its first random transform")
        self._encode, self._encoder_at = encoders[0], stored.index(encoders[0])
        drawn = (at for at, step in enumerate(stored) if isinstance(step, DrawVariant))
        self._drawn_at = next(drawn, self._encoder_at)  # all before is the same for the windows of an image
        self._recipe = Recipe(stored)
        self._contents: dict[int, tuple[str, str]] = {}
        self._files = OwnFiles(self.cache_dir)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> FeatureDataset:
        """Also seeds the transforms."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed=self.R.randint(2**32, dtype="uint64"))
        return self

    def path(self, index: int, window: int) -> Path:
        """The file that holds, or will hold, a window of an item."""
        return self._path(self._item(index, window))

    def missing(self) -> list[tuple[int, int]]:
        """(item, window) of this process' share that is not stored yet, as far as the items' files can be read."""
        pairs = [(i, n) for i in range(len(self)) for n in range(self.windows_per_image)]
        pairs = pairs[idist.get_rank() :: idist.get_world_size()]
        return [pair for pair in pairs if not self.path(*pair).is_file()]

    @PHASES.within("encoding")
    def fill(self) -> FeatureDataset:
        """
        Compute and store what is missing, with a progress bar. Reading and augmenting, and writing, go on in threads
        beside the encoder.

        Images that cannot be used do not stop the others; they are named at the end.

        Raises:
            DataError: before anything is computed, when the disk is too small; at the end, naming what failed.
        """
        missing = self.missing()
        if not missing:
            return self
        self._files.remove_partial(older_than=LEFT)  # other runs may be writing here at this moment
        needed = self.bytes_needed(len(missing))
        free = shutil.disk_usage(self.cache_dir).free
        size = f"at most {needed / 1e9:.2f} GB"
        if needed > free:
            raise DataError(
                self.cache_dir,
                f"{len(missing)} encoded windows take {size}, but {free / 1e9:.2f} GB are free",
                "Set cache_dir to a larger disk, lower cache_windows, or train with --cache off.",
            )
        print(f"encoding {counted(len(missing), 'window')}, {size}, into {self.cache_dir}", file=sys.stderr)
        failed: dict[int, DataError] = {}

        @functools.lru_cache(maxsize=1)  # an image's windows follow each other
        def read(index: int) -> dict:
            return self._read(self._item(index, 0))

        def wanted(pair: tuple[int, int]) -> bool:  # not what another run has stored by now
            return pair[0] not in failed and not self.path(*pair).is_file()

        encoded = pipelined(
            filter(None, (list(filter(wanted, batch)) for batch in _batches(missing))),
            lambda pairs: [self._augmented({**read(index), "window": window}) for index, window in pairs],
            self._encoded,
            self._store_all,
        )
        with tqdm(total=len(missing), desc="caching features", unit="window", mininterval=1.0) as bar:
            for pairs, error in encoded:
                bar.update(len(pairs))
                if error is not None:
                    cause = root_cause(error)
                    if not isinstance(cause, DataError):
                        raise error
                    failed.setdefault(pairs[0][0], cause)
        if failed:
            raise all_of(failed.values())
        return self

    def bytes_needed(self, windows: int) -> int:
        """Upper bound of the space that so many stored windows take."""
        per_pixel = self._encode.bytes_per_pixel(max(map(len, CHANNELS.values())))
        return windows * int(self.window_size**2 * per_pixel + 16_384)

    def _transform(self, index: int) -> dict:
        item = self._item(index, int(self.R.randint(self.windows_per_image)))
        crop = self._post_transform({**self._cachecheck(item), "domain": item.get("domain", 0)})
        crop["image"] = MetaTensor(crop["image"], meta={"filename_or_obj": str(item["image"])})
        return crop

    def _item(self, index: int, window: int) -> dict:
        item = self.data[index]
        if index not in self._contents:
            files = [item[key] for key in ("image", "label") if key in item]
            self._contents[index] = content_of(*files), self._recipe.of(item)
        content, recipe = self._contents[index]
        return {**item, "content": content, "recipe": recipe, "window": window}

    def _path(self, item: Mapping[str, Any]) -> Path:
        parts = [item["content"], item["window"], item.get("gaps"), item.get("span"), item["recipe"]]
        text = " ".join(map(str, parts))
        return self.cache_dir / f"{hashlib.sha256(text.encode()).hexdigest()}.pt"

    def _cachecheck(self, item: Mapping[str, Any]) -> dict:
        # MONAI's own moves from the system's temporary folder, which copies where that is another disk, and gives up
        # on a damaged file
        path = self._path(item)
        if path.is_file():
            try:
                return torch.load(path, weights_only=True)
            except Exception as error:
                raise DataError(path, f"the stored features cannot be read ({error})", "Delete the file.") from error
        (stored,) = self._encoded([self._augmented(self._read(item))])
        self._store(path, stored)
        return stored

    def _read(self, item: Mapping[str, Any]) -> dict:
        return self.transform(dict(item), end=self._drawn_at, threading=True)

    def _augmented(self, read: Mapping[str, Any]) -> dict:
        # of a copy: what was read is drawn from again, and a transform may work in place
        copied = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in read.items()}
        return self.transform(copied, start=self._drawn_at, end=self._encoder_at, threading=True)

    def _encoded(self, augmented: list[dict]) -> list[dict]:
        made = self._encode.together(augmented)
        made = self.transform(made, start=self._encoder_at + 1, end=self._first_random, threading=True)
        return [convert_to_tensor({key: one[key] for key in ("image", "target", "features")}) for one in made]

    def _store_all(self, pairs: list[tuple[int, int]], stored: list[dict]) -> None:
        for pair, window in zip(pairs, stored, strict=True):
            self._store(self.path(*pair), window)

    def _store(self, path: Path, stored: dict) -> None:
        try:
            with atomic_path(self._files.path(path.name)) as partial:
                torch.save(stored, partial)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise DataError(path, f"cannot be written ({error})", "Free space, or set cache_dir elsewhere.") from error


def _batches(pairs: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """(item, window) in groups of one item, which have most of their work in common."""
    for _, of_item in itertools.groupby(pairs, key=lambda pair: pair[0]):
        windows = list(of_item)
        for start in range(0, len(windows), TOGETHER):
            yield windows[start : start + TOGETHER]
