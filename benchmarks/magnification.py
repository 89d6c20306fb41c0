"""
Is a 20x image segmented as well as the 40x one it was made of?

    python benchmarks/magnification.py --dataset_dir DATA [--domains tnbc monuseg] [--split validation] [--images 0]
        [--views 1]

Halves real tiles and runs ``inferring``'s own parts on them: as they are, and with their pixel size told. Prints nuclei
found, F1 at IoU .5, AJI, and the share of tiles that the check by nucleus size flags (``scale_to_try``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from halved import half_size
from machine import BUNDLE  # puts the bundle on the path
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from scripts.data.readers import read_image, read_label
from scripts.data.transforms import ToTargetMppd
from scripts.nuclei.magnification import fitting_factor
from scripts.nuclei.metrics import image_metrics


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--dataset_dir", required=True, help="folder of domains with a split.json each")
    arguments.add_argument("--domains", nargs="+", default=["tnbc", "monuseg"])
    arguments.add_argument("--split", default="validation")
    arguments.add_argument("--images", type=int, default=0, help="of each domain; 0 takes all")
    arguments.add_argument("--views", type=int, default=1)
    args = arguments.parse_args()
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    parser.update({"bundle_root": str(BUNDLE), "views": args.views})
    model, network, inferer, finish = (
        parser.get_parsed_content(part) for part in ("model", "network", "inferer", "postprocessing")
    )

    def nuclei(image: torch.Tensor, mpp: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Instances at the size of the image, and where the network saw it."""
        size = np.array(image.shape[1:])
        item = {"image": MetaTensor(image, meta={"spatial_shape": size, "mpp": mpp or np.nan}), "mpp": mpp}
        item = ToTargetMppd(model.mpp, keys=["image"])(item)
        with torch.inference_mode():
            item["pred"] = inferer(item["image"][None], network)[0]
        seen = finish.transforms[0](item)["instances"]
        return np.asarray(finish(item)["instances"])[0], np.asarray(seen)[0]

    print(f"{'':46}{'tiles':>8}{'nuclei':>8}{'F1':>8}{'AJI':>8}{'flagged':>9}")
    for name in args.domains:
        root = Path(args.dataset_dir, name)
        entries = json.loads((root / "split.json").read_text())[args.split]
        found: dict[str, list] = {}
        for entry in entries[: args.images or None]:
            image = torch.from_numpy(read_image(root / entry["image"]).astype(np.float32)).permute(2, 0, 1)
            label = read_label(root / entry["label"])
            half, half_label = half_size(image, label)
            cases = {
                "as it is (40x)": (image, None, label),
                "halved, as it is": (half, None, half_label),
                "halved, pixel size told": (half, 2 * model.mpp, half_label),
            }
            for case, (pixels, mpp, true) in cases.items():
                pred, seen = nuclei(pixels, mpp)
                scores = image_metrics(pred > 0, true > 0, pred, true)
                flagged = fitting_factor(seen, model.nucleus_area_px) is not None
                found.setdefault(case, []).append([pred.max(initial=0), scores["f1_50"], scores["aji"], flagged])
        for case, rows in found.items():
            count, f1, aji, flagged = np.array(rows, float).T
            print(
                f"{name + ' ' + args.split + ', ' + case:46}{len(rows):8}{count.sum():8.0f}{f1.mean():8.3f}"
                f"{aji.mean():8.3f}{flagged.mean():9.2f}"
            )


if __name__ == "__main__":
    main()
