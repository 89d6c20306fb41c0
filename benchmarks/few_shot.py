"""
What do a few labelled tiles of one's own bring: to the slide, other patients, other organs? What is forgotten?

    python benchmarks/few_shot.py --dataset_dir DATA --output_dir OUT [--domain monuseg] [--tiles 1 2 5]
        [--case patients] [--cache_dir FEATURES] [--KEY VALUE of train.json ...]

``--case patients``: of each organ with more patients than the most tiles, 1, 2 and 5 images of as many patients are
labelled (the training and validation parts, which name organs), ``training`` goes on from the shipped weights with
``configs/few_shot.json``, and the organ's other images, and the validation images of other organs, are segmented before
and after. ``--case slide``: of each test image a quarter is labelled, and the other three are segmented. The training's
own sets are evaluated on their validation parts. What is done is skipped when the command is given again. Writes
``few_shot.csv``, one row for each model and image.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pandas as pd
from skimage.io import imread, imsave

REPO = Path(__file__).resolve().parents[1]
METRICS = ["dice", "aji", "pq"]
KNOWN = "tnbc,dsb2018_purple,dsb2018_white"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--dataset_dir", type=lambda text: Path(text).resolve(), required=True)
    arguments.add_argument("--output_dir", type=lambda text: Path(text).resolve(), required=True)
    arguments.add_argument("--domain", default="monuseg", help="which the shipped weights never saw")
    arguments.add_argument("--case", default="patients", choices=("patients", "slide"))
    arguments.add_argument("--tiles", type=int, nargs="+", default=[1, 2, 5])
    arguments.add_argument(
        "--known", default=KNOWN, help="sets of the shipped weights: auxiliaries, and what is forgotten"
    )
    arguments.add_argument("--cache_dir", type=lambda text: Path(text).resolve())
    args, settings = arguments.parse_known_args()
    args.settings = [*settings, "--cache_dir", str(args.cache_dir or args.output_dir / "features")]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    source = args.dataset_dir / args.domain
    parts = json.loads((source / "split.json").read_text())
    rows = []
    for name, group, labelled, tested in (by_patient if args.case == "patients" else by_slide)(parts, args.tiles):
        print(name, flush=True)
        data = domain(args, name, labelled, tested)
        rows += compare(args, name, group, labelled, tested, data)
        pd.DataFrame(rows).to_csv(args.output_dir / "few_shot.csv", index=False)
    table = pd.DataFrame(rows)
    print(
        table.groupby(["tiles", "where"])[[f"{m}_{when}" for m in METRICS for when in ("before", "gain")]]
        .mean()
        .round(3)
    )
    told = table[table["where"] != "known"].groupby(["tiles", "where"])
    print(told["dice_gain"].agg(images="size", better=lambda gain: (gain > 0).sum(), worst="min").round(3))


def by_patient(parts: dict, counts: list[int]) -> list[tuple]:
    """(name, organ, labelled, tested) for each organ and number of tiles; the same first tiles for all numbers."""
    entries = parts["training"] + parts["validation"]
    organs = defaultdict(dict)  # organ -> patient -> first image
    for entry in entries:
        organs[entry["organ"]].setdefault(entry["patient"], entry)
    runs = []
    for organ, patients in organs.items():
        if len(patients) > max(counts):
            others = [entry for entry in parts["validation"] if entry["organ"] != organ]
            for count in counts:
                labelled = list(patients.values())[:count]
                own = [e for e in entries if e["organ"] == organ and e["patient"] not in list(patients)[:count]]
                runs.append((f"{organ}_{count}", organ, labelled, own + others))
    return runs


def by_slide(parts: dict, counts: list[int]) -> list[tuple]:
    """(name, image, labelled quarter, tested quarters) for each test image; quarters are (entry, y, x)."""
    quarters = [(0, 0), (0, 1), (1, 0), (1, 1)]
    runs = []
    for number, entry in enumerate(parts["testing"]):
        own = quarters[number % 4]  # not always the same corner
        tested = [(entry, *quarter) for quarter in quarters if quarter != own]
        runs.append((f"slide_{number}", entry["image"], [(entry, *own)], tested))
    return runs


def domain(args: argparse.Namespace, name: str, labelled: list, tested: list) -> Path:
    """A folder with the domain ``NAME`` of these images, and links to the known ones."""
    source, data = args.dataset_dir / args.domain, args.output_dir / "data" / name
    if not (data / name / "split.json").exists():
        for folder in ("images", "labels"):
            (data / name / folder).mkdir(parents=True, exist_ok=True)
        split = {
            part: [write(source, data / name, item) for item in items]
            for part, items in (("training", labelled), ("testing", tested))
        }
        for known in args.known.split(","):
            if not (data / known).exists():
                (data / known).symlink_to(args.dataset_dir / known)
        (data / name / "split.json").write_text(json.dumps(split))
    return data


def write(source: Path, target: Path, item: dict | tuple) -> dict:
    """Link an image and its label, or write a quarter of both."""
    if isinstance(item, dict):
        for key in ("image", "label"):
            link = target / item[key]
            if not link.exists():
                link.symlink_to(source / item[key])
        return {key: item[key] for key in ("image", "label", "patient") if key in item}
    entry, *place = item
    paths = {}
    for key in ("image", "label"):
        pixels = imread(source / entry[key])
        y, x = (slice(n * side // 2, (n + 1) * side // 2) for n, side in zip(place, pixels.shape))
        paths[key] = f"{key}s/{Path(entry[key]).stem}_{place[0]}{place[1]}.png"
        imsave(target / paths[key], pixels[y, x], check_contrast=False)
    return paths


def compare(args: argparse.Namespace, name: str, group: str, labelled: list, tested: list, data: Path) -> list[dict]:
    """Train, evaluate both models, and the rows of their images."""
    out = args.output_dir / name
    model = next(out.glob("*/model.pt"), None)
    if model is None:
        config = "['configs/train.json','configs/few_shot.json']"
        run(
            "training",
            config,
            args,
            dataset_dir=data,
            primary=name,
            auxiliary=args.known,
            output_dir=out,
            leakage="allow",
            publish_path=None,
            extra=args.settings,
        )
        model = next(out.glob("*/model.pt"))
    shipped = REPO / "bundle" / "models" / "model.pt"
    organs = {Path(item["image"]).name: item.get("organ") for item in tested if isinstance(item, dict)}
    before, after = (
        evaluated(args, out / "before", data, name, shipped),
        evaluated(args, out / "after", data, name, model),
    )
    rows = [
        row(
            name,
            len(labelled),
            "slide" if not organs else "organ" if organs[file] == group else "other organs",
            file,
            before,
            after,
        )
        for file in before.index
    ]
    whole = args.dataset_dir
    first, *others = args.known.split(",")
    kept = {"split": "validation", "auxiliary": ",".join(others) or "none"}
    before = evaluated(args, args.output_dir / "known", whole, first, shipped, **kept)
    after = evaluated(args, out / "known", whole, first, model, **kept)
    return rows + [row(name, len(labelled), "known", file, before, after) for file in before.index]


def row(name: str, tiles: int, where: str, file: str, before: pd.DataFrame, after: pd.DataFrame) -> dict:
    told = {"run": name, "tiles": tiles, "where": where, "file": file}
    for metric in METRICS:
        told[f"{metric}_before"], told[f"{metric}_after"] = before.at[file, metric], after.at[file, metric]
        told[f"{metric}_gain"] = after.at[file, metric] - before.at[file, metric]
    return told


def evaluated(
    args: argparse.Namespace,
    out: Path,
    data: Path,
    primary: str,
    model: Path,
    split: str = "testing",
    auxiliary: str = "none",
) -> pd.DataFrame:
    if not (out / "metrics.csv").exists():
        run(
            "evaluating",
            "configs/evaluate.json",
            args,
            dataset_dir=data,
            primary=primary,
            auxiliary=auxiliary,
            split=split,
            ckpt_path=model,
            output_dir=out,
        )
    table = pd.read_csv(out / "metrics.csv")
    return table.set_index(table["file"].map(lambda file: Path(file).name))


def run(verb: str, config: str, args: argparse.Namespace, extra: list[str] = (), **settings: object) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", verb, "--config_file", config]
    command += [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    with (args.output_dir / "log.txt").open("a") as log:
        subprocess.run([*command, *extra], cwd=REPO / "bundle", check=True, stdout=log, stderr=log)


if __name__ == "__main__":
    main()
