"""The sub-commands of ``ama-sam``: each is a verb of the bundle."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COMMANDS", "Command"]


class Command(NamedTuple):
    """
    Args:
        verb: of the bundle.
        configs: files in ``configs/``, without their ending; the first tells which settings there are.
        about: one line.
        source: the setting that the first argument gives, None where there is none.
        shown: what help calls that argument.
        needed: whether it must be given.
        lean: whether it needs none of MONAI's optional packages (see :mod:`ama_sam.importing`).
    """

    verb: str
    configs: tuple[str, ...]
    about: str
    source: str | None = "dataset_dir"
    shown: str = "DATA"
    needed: bool = False
    lean: bool = False


COMMANDS = {
    "segment": Command(
        "inferring", ("inference",), "nuclei of an image or a folder of images", shown="IMAGES", needed=True, lean=True
    ),
    "slide": Command("segmenting_slide", ("wsi",), "nuclei of whole slides", "slide", "SLIDES", True, True),
    "train": Command("training", ("train",), "train on your domains"),
    "cache": Command("caching", ("train",), "encode the training images, and nothing else"),
    "adapt": Command("training", ("train", "few_shot"), "adapt the shipped weights to a few labelled tiles"),
    "adapt_unlabelled": Command(
        "training", ("train", "no_labels"), "adapt the shipped weights to images without labels"
    ),
    "clear_cache": Command("clearing_cache", ("train",), "remove the encoded images that are kept"),
    "evaluate": Command("evaluating", ("evaluate",), "measure a model, domain by domain"),
    "align": Command("aligning", ("align",), "measure whether domains are aligned"),
    "prepare": Command(
        "preparing", ("prepare",), "make a domain of a published set or of annotations", "source", "SOURCE"
    ),
    "experiment": Command("experimenting", ("experiment",), "train and test modes and seeds"),
    "compare": Command("comparing", ("experiment",), "compare what an experiment found", None),
}
