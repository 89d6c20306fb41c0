"""Unit test of the bundle for MONAI's model zoo: lies there in ``ci/unit_tests``, beside its ``utils``."""

import os
import shutil
import sys
import tempfile
import unittest

import numpy as np
from monai.bundle import ConfigWorkflow
from PIL import Image
from utils import check_workflow

BUNDLE = "models/ama_sam_nuclei_segmentation"
SMALL = {
    "max_epochs": 1,
    "batches_per_epoch": 1,
    "batch_size": 4,
    "crop_size": 64,
    "window_size": 64,
    "cache_windows": 1,
    "decoder_size": "light",
    "alignment_report": False,
    "publish_path": None,  # the shipped weights stay
}


def draw(path, seed):
    """A pink tile with dark discs, and their instance map."""
    rng = np.random.default_rng(seed)
    image = rng.normal((230, 190, 215), 8, (128, 128, 3))
    label = np.zeros((128, 128), np.uint16)
    y, x = np.mgrid[:128, :128]
    for number, (row, column) in enumerate(rng.integers(12, 116, (12, 2)), start=1):
        disc = (y - row) ** 2 + (x - column) ** 2 < 64
        label[disc] = number
        image[disc] = (95, 60, 140)
    for kind, pixels in (("images", image.clip(0, 255).astype(np.uint8)), ("labels", label)):
        os.makedirs(os.path.join(path, kind), exist_ok=True)
        Image.fromarray(pixels).save(os.path.join(path, kind, f"{seed}.png"))


class TestAMASAM(unittest.TestCase):
    def setUp(self):
        sys.path = [BUNDLE, *sys.path]
        self.folder = tempfile.mkdtemp()
        self.data = os.path.join(self.folder, "data")
        for domain in ("ours", "theirs"):
            for seed in range(8):
                draw(os.path.join(self.data, domain), seed)

    def tearDown(self):
        shutil.rmtree(self.folder)
        sys.path.remove(BUNDLE)

    def workflow(self, kind, *configs, **overrides):
        return ConfigWorkflow(
            workflow_type=kind,
            config_file=[os.path.join(BUNDLE, "configs", f"{config}.json") for config in configs],
            logging_file=os.path.join(BUNDLE, "configs", "logging.conf"),
            meta_file=os.path.join(BUNDLE, "configs", "metadata.json"),
            bundle_root=BUNDLE,
            **overrides,
        )

    def test_train_and_evaluate(self):
        data = {"dataset_dir": self.data, "primary": "ours"}
        output = os.path.join(self.folder, "trained")
        check_workflow(self.workflow("train", "train", **data, **SMALL, output_dir=output), check_properties=True)
        trained = os.path.join(output, "ours_joint_seed0", "model.pt")
        options = {"ckpt_path": trained, "output_dir": os.path.join(self.folder, "evaluated")}
        # override train.json, thus the workflow's type is "train"
        evaluating = self.workflow("train", "train", "evaluate", **data, **options)
        check_workflow(evaluating, check_properties=False)
        self.assertTrue(os.path.isfile(os.path.join(self.folder, "evaluated", "metrics.json")))

    def test_infer(self):
        for name, configs in (("plain", ["inference"]), ("tensorrt", ["inference", "inference_trt"])):
            images, output = os.path.join(self.data, "ours", "images"), os.path.join(self.folder, name)
            inferring = self.workflow("infer", *configs, dataset_dir=images, output_dir=output)
            check_workflow(inferring, check_properties=True)
            self.assertTrue(os.path.isfile(os.path.join(output, "0_instances.png")))


if __name__ == "__main__":
    unittest.main()
