"""What a user reads: the command that they know, and one image or two images."""

from __future__ import annotations

import sys

import pytest
from scripts import wording
from scripts.wording import command, counted


@pytest.mark.parametrize("number, told", [(0, "0 images"), (1, "1 image"), (2, "2 images")])
def test_one_is_not_several(number, told):
    assert counted(number, "image") == told


def test_a_plural_of_its_own():
    assert [counted(number, "nucleus", "nuclei") for number in (1, 3)] == ["1 nucleus", "3 nuclei"]


def test_verbs_are_named_as_the_user_started_them(monkeypatch, tmp_path):
    """By `python -m monai.bundle run training` and by `ama-sam train`."""
    from ama_sam.cli import main

    monkeypatch.setattr(wording, "_commands", {})
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    assert command("clearing_cache") == "the verb clearing_cache"
    said = []
    monkeypatch.setattr("monai.bundle.run", lambda *_, **__: said.extend(map(command, ("clearing_cache", "training"))))
    assert main(["train", str(tmp_path), "-o", str(tmp_path)]) == 0
    assert said == ["ama-sam clear_cache", "ama-sam train"]
