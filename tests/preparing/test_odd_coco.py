"""COCO as CVAT and others write it: instances, or a named finding; what is odd stops nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts.preparing.formats import coco

SIDE = 60
MASK = np.zeros((SIDE, SIDE), bool)
MASK[10:20, 30:45] = True


def runs(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[False], mask.T.ravel(), [not mask.T.ravel()[-1]]])
    return np.diff(np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1])])).tolist()


POLYGON = [[30, 10, 45, 10, 45, 20, 30, 20]]
RUNS = {"counts": runs(MASK), "size": [SIDE, SIDE]}


@pytest.mark.parametrize(
    "annotation, pixels, problem",
    [
        ({"iscrowd": 1, "segmentation": RUNS}, 150, None),
        ({"iscrowd": 0, "segmentation": RUNS}, 150, None),
        ({"segmentation": POLYGON}, 150, None),
        ({"segmentation": POLYGON, "image_id": "1"}, 150, None),
        ({"segmentation": [[1, 2, 3]]}, 0, "unreadable outline"),
        ({"segmentation": {"counts": [5], "size": [2, 2]}}, 0, "unreadable outline"),
        ({"segmentation": []}, 0, "not an outline"),
        ({"iscrowd": 1, "segmentation": POLYGON}, 0, "crowd"),
    ],
)
def test_annotations(tmp_path, annotation, pixels, problem):
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(tmp_path / "a.png")
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2}, {"file_name": None, "id": 3}, "text"]
    content = {"images": images, "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **annotation}, 5, {}]}
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    files = {"a.png": tmp_path / "a.png", "instances.json": Path(path)}
    part = {"images": "{name}.png", "labels": "*.json", "format": "coco"}
    samples, skipped = coco.find(files, part)
    assert [sample.name for sample in samples] == ["a"]
    assert [entry.finding.problem for entry in skipped] == ["image without a name"] * 2
    instances = coco.read_labels(samples[0], (SIDE, SIDE))
    assert (instances.label > 0).sum() == pixels
    assert [finding.problem for finding in instances.findings] == ([problem] if problem else [])
