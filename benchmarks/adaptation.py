"""
Learning from a few labelled images through a MONAI Label server: what it gains on them, and what it forgets.

The app is served, the first images of a domain's training part are uploaded with their labels, the server trains from
the shipped model, and what it publishes is evaluated on that domain and on another one. Once with the auxiliary domains
(``ama``) and once as plain fine-tuning (``single``). Choose a schedule with ``--split validation``.

    python benchmarks/adaptation.py --data DATA --output_dir runs/adaptation
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from label_server import LabelServer  # noqa: E402

REPO = Path(__file__).resolve().parents[1]
MODEL = "ama_sam"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=lambda text: Path(text).resolve(), required=True, help="folder of domain folders"
    )
    parser.add_argument("--output_dir", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--primary", default="monuseg", help="the domain that is labelled image by image")
    parser.add_argument("--known", default="tnbc", help="the domain of which forgetting is measured")
    parser.add_argument("--auxiliary", default="tnbc,dsb2018_purple,dsb2018_white")
    parser.add_argument("--counts", default="1,3,5,10")
    parser.add_argument("--modes", default="ama,single")
    parser.add_argument("--split", default="testing", choices=("validation", "testing"))
    parser.add_argument("--max_epochs", type=int, default=6)
    parser.add_argument("--batches_per_epoch", type=int, default=20)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    table = arguments.output_dir / "adaptation.csv"
    shipped = REPO / "bundle" / "models" / "model.pt"
    rows = [{"mode": "shipped", "images": 0, **evaluate(shipped, arguments, arguments.output_dir / "shipped")}]
    write(table, rows)
    entries = json.loads((arguments.data / arguments.primary / "split.json").read_text())["training"]
    entries.sort(key=lambda entry: entry["image"])
    settings = {"cache_dir": arguments.output_dir / "features"}
    settings |= {"auxiliary_dir": arguments.data, "auxiliary": arguments.auxiliary}
    for mode in arguments.modes.split(","):
        folder = Path(tempfile.mkdtemp(prefix=f"server_{mode}_", dir=arguments.output_dir))
        with LabelServer(REPO / "apps" / "ama_sam", folder, {**settings, "model_dir": folder / "model"}) as server:
            labelled = 0
            for count in map(int, arguments.counts.split(",")):
                while labelled < count:
                    label(server, arguments.data / arguments.primary, entries[labelled])
                    labelled += 1
                (folder / "model" / "model.pt").unlink(missing_ok=True)  # each training begins with the shipped model
                seconds = train(server, mode, arguments)
                out = arguments.output_dir / f"{mode}_{count}"
                scores = evaluate(folder / "model" / "model.pt", arguments, out)
                rows.append({"mode": mode, "images": count, **scores, "training_seconds": round(seconds)})
                write(table, rows)


def label(server: LabelServer, root: Path, entry: dict) -> None:
    for method, name, key in (("image", "file", "image"), ("label", "label", "label")):
        path = root / entry[key]
        with path.open("rb") as file:
            answer = requests.put(
                f"{server.url}/datastore/{method}?image={path.stem}", files={name: (path.name, file)}, timeout=60
            )
        answer.raise_for_status()


def train(server: LabelServer, mode: str, arguments: argparse.Namespace) -> float:
    names = ("max_epochs", "batches_per_epoch", "learning_rate", "seed")
    request = {"mode": mode, "val_split": 0, "publish": "always", **{name: getattr(arguments, name) for name in names}}
    start = time.perf_counter()
    status = server.train(MODEL, request, timeout=3600)
    if status["status"] != "DONE":
        raise SystemExit("\n".join(status["details"]))
    return time.perf_counter() - start


def evaluate(model: Path, arguments: argparse.Namespace, out: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "monai.bundle", "run", "evaluating", "--config_file", "configs/evaluate.json"]
    options = {"dataset_dir": arguments.data, "primary": arguments.primary, "auxiliary": arguments.known}
    options |= {"split": arguments.split, "ckpt_path": model, "output_dir": out}
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    subprocess.run(command, cwd=REPO / "bundle", check=True, stdout=subprocess.DEVNULL)
    domains = json.loads((out / "metrics.json").read_text())["domains"]
    names = {f"{domain}_{metric}": (domain, metric) for domain in domains for metric in ("dice", "aji")}
    return {name: round(domains[domain][metric]["mean"], 4) for name, (domain, metric) in names.items()}


def write(table: Path, rows: list[dict]) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    print(rows[-1], flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
