"""The card on the Hugging Face hub: huggingface_hub reads it back, and each of its links leads somewhere."""

from __future__ import annotations

import json
import posixpath
import re
import zipfile

import pytest
from scripts.sharing.packing import pack

hub = pytest.importorskip("huggingface_hub")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def packed(bundle_root, tmp_path_factory):
    """Files of the zip by their path."""
    path = pack(bundle_root, tmp_path_factory.mktemp("packed"), "mine", "huggingface")
    with zipfile.ZipFile(path) as archive:
        return {name.removeprefix("mine/"): archive.read(name) for name in archive.namelist()}


def test_the_hub_reads_licence_task_data_and_figures(bundle_root, packed):
    card = hub.ModelCard(packed["README.md"].decode())
    data = card.data
    assert data.license == "apache-2.0" and data.library_name == "monai" and data.pipeline_tag == "image-segmentation"
    assert data.datasets == ["tnbc", "dsb2018_purple", "dsb2018_white"], "those trained on"
    metrics = json.loads((bundle_root / "configs" / "metadata.json").read_text())["eval_metrics"]
    told = {(result.dataset_name, result.metric_type): result.metric_value for result in data.eval_results}
    assert told == {
        (name, kind): values[f"{metric}_mean"]
        for name, values in metrics.items()
        for metric, kind in (("dice", "dice"), ("aji", "aji"), ("pq", "pq"), ("f1_50", "f1"))
    }
    assert {result.task_name for result in data.eval_results if result.dataset_name == "monuseg"} == {
        "Nuclei segmentation, data set not seen in training"
    }
    assert "eprint = {2503.21695}" in card.text and card.text.count("@misc") == 3


def _anchors(text):
    """Of the headings, as GitHub and the hub make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_link_of_each_page_leads_to_a_file_of_the_zip(packed):
    broken = []
    for page in (name for name in packed if name.endswith(".md")):
        for link in LINK.findall(FENCE.sub("", packed[page].decode())):
            path, _, anchor = link.partition("#")
            if link.startswith("https://"):
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
            if target not in packed or anchor and anchor not in _anchors(packed[target].decode()):
                broken.append(f"{page}: {link}")
    assert not broken
