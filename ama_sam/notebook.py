from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ama_sam.places import BUNDLE, use_bundle

if TYPE_CHECKING:
    from scripts.inference.in_memory import Segmenter

__all__ = ["load"]


def load(model: str | os.PathLike | None = None, device: str | None = None, **settings: Any) -> Segmenter:
    """
    A model that segments images, see ``scripts.inference.in_memory``.

    Args:
        model: the model file; by default the shipped one.
        device: ``cpu``, ``cuda`` ...; by default a GPU where there is one.
        settings: other keys of ``configs/inference.json``, such as ``threshold`` or ``views``; not ``mpp``, which is of
            each image.

    Raises:
        DataError: for a setting that is not known or not allowed, or a model that cannot be read.
        ImportError: when another package ``scripts`` was imported before.
    """
    use_bundle()
    from ama_sam.importing import without_garbage_search

    with without_garbage_search():
        from scripts.inference.in_memory import Segmenter

    given = dict(settings)
    given |= {} if model is None else {"ckpt_path": os.path.abspath(model)}
    given |= {} if device is None else {"device": device}
    return Segmenter(BUNDLE / "configs" / "inference.json", BUNDLE, given)
