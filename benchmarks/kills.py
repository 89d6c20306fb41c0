"""
Do verbs that are killed at random moments end as the undisturbed ones?

    python benchmarks/kills.py [--rounds 20] [--seed 0]

Not speed. In each round a training on synthetic domains and a synthetic slide are killed (SIGKILL) at one to three
random ones of their file operations, gone on with, and compared with the undisturbed run: weights and history, GeoJSON
and tables, byte by byte. Prints how many kills were survived; exits with 1 if a result differs. Fixed kills are in
``tests/trust/test_kills.py``.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
from pathlib import Path

from machine import BUNDLE  # puts the bundle on the path

sys.path.append(str(BUNDLE.parent / "tests" / "helpers"))

import torch
from fakes import TINY_TRAINING, tiny_encoder
from killing import case, kill_at, run_verbs
from scripts.data.synthetic import make_synthetic
from scripts.networks.model_file import read_model_file
from slides import make_drawing, save_slide

RUN = "synthetic_pink_ama_seed0"


class Training:
    def __init__(self, folder: Path) -> None:
        self.weights, self.data = tiny_encoder(folder)[1], make_synthetic(folder / "synthetic")

    def case(self, out: Path, kill: dict | None) -> dict:
        settings = {**TINY_TRAINING, "dataset_dir": self.data, "backbone_weights": self.weights, "max_epochs": 2}
        settings |= {"alignment_report": True, "alignment_windows": 4, "domain_images": 2, "keep": "last"}
        settings |= {"output_dir": out, "publish_path": out / "served" / "model.pt", "batches_per_epoch": 1}
        settings["resume"] = any(out.glob(f"{RUN}*/checkpoint.pt"))
        return case("training", "train.json", out.parent / "log", kill, settings)

    def result(self, out: Path) -> list:
        run = max(out.glob(f"{RUN}*/checkpoint.pt")).parent
        weights = [read_model_file(path / "model.pt")["model"] for path in (run, out / "served")]
        return [(run / "history.csv").read_text(), *({k: v.tolist() for k, v in w.items()} for w in weights)]


class Slide:
    def __init__(self, folder: Path) -> None:
        self.slide = save_slide(folder / "a.tif", make_drawing(1500, 1200, seed=3), 0.2, levels=(1, 4))

    def case(self, out: Path, kill: dict | None) -> dict:
        settings = {"slide": self.slide, "output_dir": out, "tile_size": 256, "device": "cpu", "ckpt_path": "none"}
        settings["network"] = "{'_target_':'slides.Darkness'}"
        settings["model"] = "{'_target_':'scripts.networks.model_info.ModelInfo'}"
        return case("segmenting_slide", "wsi.json", out.parent / "log", kill, settings)

    def result(self, out: Path) -> list:
        return [(out / "a" / name).read_bytes() for name in ("nuclei.geojson", "nuclei.csv", "tiles.csv")]


def finished(verb: Training | Slide, out: Path, kills: list[dict]) -> int:
    """Run a verb, killed so often, to its end; how many kills took place (a late one may come after the end)."""
    killed = 0
    for kill in [*kills, None]:
        (code,) = run_verbs([verb.case(out, kill)])
        if code == 0:
            return killed
        if code != -signal.SIGKILL:
            raise SystemExit(f"{out}: ended with {code}\n{(out.parent / 'log').read_text()[-3000:]}")
        killed += 1
    raise AssertionError("the last run has no kill")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    draw, wrong, total = random.Random(given.seed), 0, 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for verb in (Training(folder), Slide(folder)):
            kind = type(verb).__name__.lower()
            whole, count = folder / f"{kind}_whole", folder / "count"
            run_verbs([{**verb.case(whole, None), "count": str(count)}])
            steps = {step: n for step, n in json.loads(count.read_text()).items() if n}
            expected = verb.result(whole)
            for number in range(given.rounds):
                kills = []
                for _ in range(draw.randint(1, 3)):
                    step = draw.choices(list(steps), list(steps.values()))[0]
                    kills.append(kill_at(step, nth=draw.randint(1, steps[step])))
                out = folder / f"{kind}_{number}"
                total += finished(verb, out, kills)
                if verb.result(out) != expected:
                    wrong += 1
                    print(f"{kind}, round {number}: another result after {kills}")
    print(f"{total} kills, {2 * given.rounds} results, {wrong} of them wrong")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
