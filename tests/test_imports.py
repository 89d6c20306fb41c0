"""Arrows between the folders of scripts point one way, from what uses to what is used."""

from __future__ import annotations

import ast
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "bundle" / "scripts"

# a folder may use those before it, and the modules beside the folders; nothing uses the last line
ORDER = ["networks", "nuclei", "data", "preparing", "out_of_domain", "inference", "slides", "evaluation", "alignment"]
ORDER += ["training", "tracking", "experiments", "sharing"]


def imports(file: Path) -> set[str]:
    """What of scripts a file imports, anywhere in it: ``networks.ama_sam``, ``errors``."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.removeprefix("scripts.") for name in names if name.startswith("scripts.")}
    return found


def test_every_folder_has_its_place():
    assert sorted(ORDER) == sorted(path.parent.name for path in SCRIPTS.glob("*/__init__.py"))


def test_folders_use_only_folders_before_them():
    wrong = [
        f"{file.relative_to(SCRIPTS)} imports {name}"
        for file in SCRIPTS.glob("*/**/*.py")
        for name in imports(file)
        if (folder := name.partition(".")[0]) in ORDER
        and ORDER.index(folder) > ORDER.index(file.relative_to(SCRIPTS).parts[0])
    ]
    assert not wrong


def test_what_lies_beside_the_folders_uses_none_of_them():
    wrong = [
        f"{file.name} imports {name}"
        for file in SCRIPTS.glob("*.py")
        for name in imports(file)
        if name.partition(".")[0] in ORDER
    ]
    assert not wrong


def test_no_room_is_above_a_sixth_of_the_house():
    lines = {file: len(file.read_text().splitlines()) for file in SCRIPTS.rglob("*.py")}
    rooms = {folder: sum(lines[file] for file in (SCRIPTS / folder).rglob("*.py")) for folder in ORDER}
    assert max(rooms.values()) < sum(lines.values()) / 6, rooms
