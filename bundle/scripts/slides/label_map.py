"""The label map of a slide, drawn from the stream of its nuclei where it is asked for."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scripts.nuclei.geoparquet import outlines
from scripts.nuclei.label_pyramid import LabelPyramid, id_type
from skimage.draw import polygon

__all__ = ["slide_label_map"]

KEPT = 64  # batches of nuclei that stay in memory: each is of one tile, and neighbouring boxes share them


class _Batch(NamedTuple):
    """Nuclei of one tile: ids (N,), boxes (N, 4) as left, top, right, bottom, and outlines in level-0 pixels."""

    ids: np.ndarray
    boxes: np.ndarray
    rings: list[np.ndarray]


class _Stream:
    """Reads batches of a stream of nuclei in any order."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.starts: list[int] = []
        self.last = 0
        boxes = []
        with pa.OSFile(os.fspath(path)) as file:
            self._schema = pa.ipc.read_schema(file)
            while True:
                start = file.tell()
                try:
                    message = pa.ipc.read_message(file)
                except EOFError:
                    break
                nuclei = _unpack(pa.ipc.read_record_batch(message, self._schema))
                self.starts.append(start)
                self.last = max(self.last, int(nuclei.ids.max()))
                boxes.append([*nuclei.boxes[:, :2].min(0), *nuclei.boxes[:, 2:].max(0)])
        self.boxes = np.array(boxes).reshape(-1, 4)
        self.read = functools.lru_cache(KEPT)(self._read)

    def _read(self, index: int) -> _Batch:
        with pa.OSFile(os.fspath(self.path)) as file:
            file.seek(self.starts[index])
            return _unpack(pa.ipc.read_record_batch(pa.ipc.read_message(file), self._schema))


def slide_label_map(stream: str | os.PathLike, shape: tuple[int, int], mpp: float) -> LabelPyramid:
    """
    The label map of a slide's nuclei at level 0; memory holds the nuclei of a few tiles.

    A pixel is a nucleus' where its centre lies within the outline, of two the one with the lower id.

    Args:
        stream: file of all nuclei, see ``nuclei_schema``; each batch has some.
        shape: (H, W) of level 0.
        mpp: micrometres per pixel of level 0.
    """
    nuclei = _Stream(stream)
    dtype = id_type(nuclei.last)

    def draw(level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        step = 2**level
        ids = np.zeros((height, width), dtype)
        box = np.array([left, top, left + width, top + height]) * step
        for index in np.flatnonzero(_meet(nuclei.boxes, box)):
            batch = nuclei.read(int(index))
            for at in np.flatnonzero(_meet(batch.boxes, box)):
                x, y = ((batch.rings[at] - 0.5) / step - (left, top)).T
                rows, columns = polygon(y, x, ids.shape)
                free = ids[rows, columns] == 0
                ids[rows[free], columns[free]] = batch.ids[at]
        return ids

    return LabelPyramid(shape, dtype, mpp, draw)


def _meet(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] < box[2:]).all(1) & (boxes[:, 2:] > box[:2]).all(1)


def _unpack(batch: pa.RecordBatch) -> _Batch:
    boxes = batch["bbox"].flatten()
    sides = np.stack([np.asarray(side) for side in boxes], 1)
    return _Batch(np.asarray(batch["id"]), sides, outlines(batch["geometry"]))
