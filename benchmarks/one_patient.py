"""
A folder of one domain as two: one patient with labels, and the images of the others without.

    python benchmarks/one_patient.py --dataset_dir DATA --domain tnbc [--draw 0] --output_dir SPLIT

Writes ``SPLIT/DOMAIN_own`` and ``SPLIT/DOMAIN_others``, datalists and links to images of the training part alone, and
links to the other domains of ``DATA``. The patient is the one that ``limit_groups`` 1 takes with ``limit_draw`` DRAW.
What it brings: ../bundle/docs/experiments.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "bundle"))

from scripts.data.domain_folders import domain_list  # noqa: E402
from scripts.data.domains import load_items  # noqa: E402


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--dataset_dir", type=lambda text: Path(text).resolve(), required=True)
    arguments.add_argument("--domain", required=True, help="which has a split.json that names patients")
    arguments.add_argument("--draw", type=int, default=0, help="0: the first patient; else of a random order")
    arguments.add_argument("--output_dir", type=lambda text: Path(text).resolve(), required=True)
    args = arguments.parse_args()
    domains = domain_list(args.dataset_dir, args.domain, "none")
    own = load_items(domains, "training", limit_groups=1, limit_draw=args.draw)
    others = [item for item in load_items(domains, "training") if item["group"] != own[0]["group"]]
    link(own, args.output_dir / f"{args.domain}_own", ("image", "label"))
    link(others, args.output_dir / f"{args.domain}_others", ("image",))
    for known in args.dataset_dir.iterdir():
        if known.is_dir() and known.name != args.domain and not (args.output_dir / known.name).exists():
            (args.output_dir / known.name).symlink_to(known)
    told = f"{len(own)} images of {own[0]['group']} with labels, {len(others)} of others without"
    print(f"{args.output_dir}: {told}")


def link(items: list[dict], folder: Path, kinds: tuple[str, ...]) -> None:
    """A domain of links, with a datalist of the training part."""
    entries = []
    for item in items:
        entry = {"patient": item["group"].partition("/")[2]}
        for kind in kinds:
            path = Path(item[kind])
            place = folder / f"{kind}s" / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.is_symlink():
                place.symlink_to(path)
            entry[kind] = f"{kind}s/{path.name}"
        entries.append(entry)
    (folder / "split.json").write_text(json.dumps({"training": entries}, indent=1))


if __name__ == "__main__":
    main()
