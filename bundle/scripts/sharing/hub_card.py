from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.errors import DataError
from scripts.files import read_json
from scripts.networks.model_info import model_info
from scripts.nuclei.metric_table import METRICS

__all__ = ["hub_card"]

# figures that the hub shows, and what it calls them
_SHOWN = {"dice": "dice", "aji": "aji", "pq": "pq", "f1_50": "f1"}
_LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)\s]+)(\))")
_ARXIV = re.compile(r"https://arxiv\.org/abs/(\S+)")


def hub_card(bundle_root: str | os.PathLike) -> str:
    """
    The bundle's ``README.md`` on the Hugging Face hub: its model card with what the hub reads (licence, task, data
    sets, figures of ``eval_metrics``), links that lead from the folder's top, and how to cite.

    Raises:
        DataError: when a part is missing, or huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError as error:
        raise DataError("huggingface_hub", "it is not installed", "python -m pip install huggingface_hub") from error
    root = Path(bundle_root)
    metadata = read_json(root / "configs" / "metadata.json")
    domains = [domain["name"] for domain in model_info(root / "models" / "model.pt").domains]
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Nuclei segmentation" + ("" if name in domains else ", data set not seen in training"),
            dataset_type=name,
            dataset_name=name,
            dataset_split="test",
            metric_type=kind,
            metric_name=f"{METRICS[metric].title}, mean over {values['images']} images",
            metric_value=values[f"{metric}_mean"],
        )
        for name, values in metadata["eval_metrics"].items()
        for metric, kind in _SHOWN.items()
        if f"{metric}_mean" in values
    ]
    data = ModelCardData(
        license="apache-2.0",
        library_name="monai",
        pipeline_tag="image-segmentation",
        tags=["monai", "medical", "pathology", "histology", "nuclei", "instance-segmentation", "segment-anything"],
        datasets=domains,
        metrics=list(_SHOWN.values()),
        model_name=metadata["name"],
        eval_results=results,
    )
    text = (root / "docs" / "README.md").read_text(encoding="utf-8")
    return f"---\n{data.to_yaml()}\n---\n\n{_LINK.sub(_from_top, text).rstrip()}\n\n{_citation(metadata)}"


def _from_top(link: re.Match) -> str:
    """A link of ``docs/README.md`` as it is one folder above."""
    path = os.path.normpath(os.path.join("docs", link[2]))
    return f"{link[1]}{Path(path).as_posix()}{link[3]}"


def _citation(metadata: Mapping[str, Any]) -> str:
    entries = []
    for reference in metadata["references"]:
        text, address = _ARXIV.sub("", reference).strip(" ."), _ARXIV.search(reference)
        number = address[1].rstrip(".") if address else ""
        extra = f",\n  eprint = {{{number}}},\n  archivePrefix = {{arXiv}}" if number else ""
        entries.append(f"@misc{{arxiv_{number.replace('.', '_')},\n  title = {{{text}}}{extra}\n}}")
    entries.append(
        f"@software{{ama_sam_bundle,\n  title = {{{metadata['name']}}},\n  version = {{{metadata['version']}}}\n}}"
    )
    return "## Citation\n```bibtex\n" + "\n".join(entries) + "\n```\n"
