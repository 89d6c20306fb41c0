from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from PIL import Image
from scripts.ending import when_interrupted
from scripts.errors import DataError
from scripts.files import atomic_path, read_json, write_json, write_table
from scripts.inference.output_names import output_names
from scripts.inference.remarks import remarks
from scripts.inference.tolerant import printable, root_problem
from scripts.networks.model_info import ModelInfo
from scripts.nuclei.geojson import NucleusFormat
from scripts.nuclei.label_maps import LABEL_FORMATS, PNG_LEVEL, save_label_map
from scripts.nuclei.label_pyramid import pyramid_of
from scripts.nuclei.magnification import fitting_factor
from scripts.nuclei.measures import binary_entropy, describe_nuclei
from scripts.nuclei.metrics import known_mpp
from scripts.nuclei.nuclei_files import write_nuclei
from scripts.nuclei.ome_zarr import write_ome_zarr
from scripts.nuclei.overlays import overlay
from scripts.owned import OwnFiles
from scripts.zarr_library import zarr_library

__all__ = ["OUTPUTS", "PredictionWriter"]

logger = logging.getLogger(__name__)

ONE_FILE = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)  # what is wrong with one name, and no other
IMAGES_IN_FLIGHT = 2  # written while the network goes on: memory holds no more than these
OUTPUTS = ("mask", "instances", "overlay", "geojson", "csv", "parquet")
NUCLEI = {"geojson": ".geojson", "csv": "_nuclei.csv", "parquet": "_nuclei.parquet"}
SUMMARIES = ("summary.csv", "summary.json")


class _NotSeparatedError(Exception):
    """Post-processing of one image failed."""


class PredictionWriter:
    """
    MONAI/ignite handler that separates the nuclei an evaluator predicts and writes them, image by image, beside the
    network's work on the next.

    Reads, from the evaluator's decollated items, ``image`` (3, H, W) RGB in [0, 255] with ``filename_or_obj`` and
    ``mpp`` in the meta data, and ``pred`` (C, H, W) logits with the foreground first; after ``postprocessing``,
    ``mask`` and ``instances`` (1, H, W), and ``spread`` (1, H, W) if there is one. Writes into ``output_dir``, by
    :func:`output_names`,

    - ``<name>_mask.png``: 8-bit, 0 and 255;
    - ``<name>_instances.png``: 16-bit ids (or ``.tif``, 32-bit, for an image of more than 65,535 nuclei);
    - ``<name>_overlay.jpg``: outlines on the image, to look at;
    - ``<name>.geojson``, ``<name>_nuclei.csv`` and ``<name>_nuclei.parquet``: outlines and measures by
      ``NucleusFormat``, ids as in the map;
    - ``summary.csv`` and ``summary.json`` at the end: file, nuclei, share of the area, ``uncertainty`` (mean binary
      entropy of the foreground probability over the nuclei's pixels, in bits; None without nuclei), seconds of network
      and post-processing, ``mpp`` and where it is from (``given``, ``file``, or ``unknown``: then the image was taken
      as it is), ``scale_to_try`` where nuclei are of another size than the model knows (see
      ``nuclei.magnification.fitting_factor``), and the values of ``domain_score`` where items have one.

    Args:
        output_dir: folder of the files; made if missing.
        data: the items that will come, such as ``{"image": path}``: names that would clash are told apart.
        root: folder whose sub-folders are kept below ``output_dir``; by default the one that holds all the files.
        outputs: which of ``mask``, ``instances``, ``overlay``, ``geojson``, ``csv``, ``parquet`` to write.
        label_format: of the instances: one of ``LABEL_FORMATS``.
        model: tells the pixel size and the size of nuclei that the network knows.
        failed: is told ``(file, problem)`` of an image whose results cannot be written, such as
            ``TolerantDataset.add_error``; the others go on.
        arithmetic: in which the network computed, for ``summary.json``.
        postprocessing: is applied to an item first; None where the evaluator has done it.

    Raises:
        DataError: when a prediction would be written over an input file, or over any file that we did not write; when
            OME-Zarr is asked for and zarr is not installed.
        ValueError: when an output or format is not known.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        data: Sequence[dict[str, Any]],
        root: str | os.PathLike | None = None,
        outputs: Sequence[str] = OUTPUTS[:-1],
        label_format: str = "png",
        model: ModelInfo | None = None,
        failed: Callable[[str, str], None] | None = None,
        arithmetic: str | None = None,
        postprocessing: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self.failed, self.arithmetic, self.postprocessing = failed, arithmetic, postprocessing
        if unknown := set(outputs) - set(OUTPUTS):
            raise ValueError(f"outputs must be some of {', '.join(OUTPUTS)}, got {', '.join(sorted(unknown))}")
        if label_format not in LABEL_FORMATS:
            raise ValueError(f"label_format must be one of {', '.join(LABEL_FORMATS)}, got {label_format}")
        if label_format == "ome.zarr" and "instances" in outputs:
            zarr_library(label_format)
        self.output_dir, self.model = Path(output_dir), model or ModelInfo()
        self.outputs = set(outputs)
        self.label_format = label_format
        paths = [item["image"] for item in data]
        self.names = output_names(paths, root)
        inputs = {Path(path).resolve() for path in paths}
        targets = [file for name in self.names.values() for file in self._files_of(name, self.outputs, [label_format])]
        for file in targets:
            if (self.output_dir / file).resolve() in inputs:
                hint = "Choose another output_dir."
                raise DataError(self.output_dir / file, "is an input file and would be written over", hint)
        self.files = OwnFiles(self.output_dir, self._earlier())
        stores = [f"{name}_instances.ome.zarr" for name in self.names.values() if "instances" in self.outputs]
        stores = [name for name in stores if (self.output_dir / name).is_dir() and name in self.files]
        self.files.check([*targets, *SUMMARIES, *stores])  # an earlier store goes, whatever format comes now
        self.rows: list[dict[str, Any]] = []
        self._started = 0.0
        self._writing: deque[tuple[str, Future]] = deque()

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_STARTED, self._start_clock)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write_summary)

    def _reset(self, engine: Engine) -> None:
        self.rows = []
        self._thread = ThreadPoolExecutor(1, "writing")
        when_interrupted(self._stop)  # Python itself would wait for a thread that was just being started for ever

    def _start_clock(self, engine: Engine) -> None:
        self._started = time.perf_counter()

    def _write(self, engine: Engine) -> None:
        seconds = (time.perf_counter() - self._started) / len(engine.state.output)
        for item in engine.state.output:
            self._wait(IMAGES_IN_FLIGHT - 1)
            file = str(item["image"].meta["filename_or_obj"])
            self._writing.append((file, self._thread.submit(self._finish_image, item, seconds)))

    def _wait(self, pending: int) -> None:
        """Until at most so many images remain to be written; raises what went wrong with one."""
        while len(self._writing) > pending:
            file, future = self._writing.popleft()
            try:
                future.result()
            except OSError as error:
                if error.errno not in ONE_FILE:  # the disk is full or gone: no other could be written either
                    self._stop()
                    raise
                self._fail(file, f"its results cannot be written ({error.strerror})")
            except _NotSeparatedError as error:
                self._fail(file, str(error))
            except (UnicodeError, DataError) as error:
                self._fail(file, f"its results cannot be written ({error})")
            except BaseException:
                self._stop()
                raise

    def _stop(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _fail(self, file: str, problem: str) -> None:
        logger.error("skipped %s: %s", printable(file), problem)
        if self.failed is not None:
            self.failed(file, problem)

    def _finish_image(self, item: dict[str, Any], seconds: float) -> None:
        start = time.perf_counter()
        if self.postprocessing is not None:
            try:
                item = self.postprocessing(item)
            except Exception as error:  # whatever is wrong with one image, the others go on
                raise _NotSeparatedError(f"its nuclei cannot be separated ({root_problem(error)})") from error
        self._write_image(item, seconds + time.perf_counter() - start)

    def _write_image(self, item: dict[str, Any], seconds: float) -> None:
        image, mask, instances = (np.asarray(item[key].cpu()) for key in ("image", "mask", "instances"))
        mask, instances = mask[0] > 0, instances[0]
        meta = item["image"].meta
        file, mpp = str(meta["filename_or_obj"]), known_mpp(meta.get("mpp"))
        name = self.names[os.path.abspath(file)]
        if "mask" in self.outputs:
            self._save_picture(name, "_mask.png", mask.astype(np.uint8) * 255)
        if "instances" in self.outputs:
            self._save_instances(name, instances, mpp)
        if "overlay" in self.outputs:
            self._save_picture(name, "_overlay.jpg", overlay(image, instances))
        probability = np.asarray(item["pred"][0].float().sigmoid().cpu())
        if NUCLEI.keys() & self.outputs:
            paths = [self._target(name, end) if output in self.outputs else None for output, end in NUCLEI.items()]
            spread = np.asarray(item["spread"][0].cpu()) if "spread" in item else None
            nuclei = describe_nuclei(instances, probability, image, spread)
            write_nuclei(nuclei, NucleusFormat(printable(name), mpp, with_spread=spread is not None), *paths)
        row = {
            "file": printable(file),
            "nuclei": int(instances.max(initial=0)),
            "area_fraction": round(float(mask.mean()), 6),
            "uncertainty": round(float(binary_entropy(probability[mask]).mean()), 4) if mask.any() else None,
        }
        domain = score.values() if (score := item.get("domain_score")) else {}
        pixel = {
            "mpp": mpp,
            "mpp_from": meta.get("mpp_from", "unknown"),
            "scale_to_try": self._scale_to_try(instances, mpp),
        }
        if "mpp_estimate" in meta:
            guess = known_mpp(meta["mpp_estimate"])
            pixel["mpp_estimate"] = None if guess is None else round(guess, 3)
        self.rows.append({**row, "seconds": round(seconds, 3), **pixel, **domain})

    def _scale_to_try(self, instances: np.ndarray, mpp: float | None) -> float | None:
        """How much larger the network would have had to see the image than it did."""
        seen = 1.0 if mpp is None or self.model.mpp is None else mpp / self.model.mpp
        area = self.model.nucleus_area_px and {k: v / seen**2 for k, v in self.model.nucleus_area_px.items()}
        factor = fitting_factor(instances, area)
        return None if factor is None else round(factor, 2)

    def _save_instances(self, name: str, instances: np.ndarray, mpp: float | None) -> None:
        """Save an (H, W) map of nuclei with ids 1..N; what an earlier run left in another format goes."""
        suffix, nuclei = self.label_format, int(instances.max(initial=0))
        if suffix == "png" and nuclei > np.iinfo(np.uint16).max:
            logger.warning("%s: %d nuclei do not fit a 16-bit PNG, written as 32-bit TIFF", name, nuclei)
            suffix = "tif"
        if suffix == "ome.zarr":
            with self.files.store(f"{name}_instances.ome.zarr") as folder:
                write_ome_zarr(folder, pyramid_of(instances, mpp), Path(name).name)
        else:
            save_label_map(self._target(name, f"_instances.{suffix}"), instances, mpp)
        for other in set(LABEL_FORMATS) - {suffix}:
            self.files.remove(f"{name}_instances.{other}")

    def _save_picture(self, name: str, kind: str, pixels: np.ndarray) -> None:
        with atomic_path(self._target(name, kind)) as path:
            # lines of one pixel need JPEG's full colour
            Image.fromarray(pixels).save(path, compress_level=PNG_LEVEL, quality=90, subsampling=0)

    def _target(self, name: str, kind: str) -> Path:
        return self.files.path(f"{name}{kind}")

    def _files_of(self, name: str, outputs: Collection[str], label_formats: Sequence[str]) -> list[str]:
        """What may be written of an image."""
        ends = {"mask": "_mask.png", "overlay": "_overlay.jpg", **NUCLEI}
        files = [name + end for output, end in ends.items() if output in outputs]
        return files + [f"{name}_instances.{end}" for end in label_formats if "instances" in outputs]

    def _earlier(self) -> list[str]:
        """What a version before 0.4.1, which kept no list, wrote of these images, by its summary and its config."""
        try:
            rows = read_json(self.output_dir / "summary.json")["files"]
            outputs = read_json(self.output_dir / "inference.json")["outputs"]
            names = [self.names[path] for row in rows if (path := os.path.abspath(row["file"])) in self.names]
        except (DataError, KeyError, TypeError):
            return []
        files = [*SUMMARIES, *(file for name in names for file in self._files_of(name, outputs, LABEL_FORMATS))]
        return [file for file in files if (self.output_dir / file).exists()]

    def _write_summary(self, engine: Engine) -> None:
        self._wait(0)
        self._thread.shutdown()
        columns = ("file", "nuclei", "area_fraction", "uncertainty", "seconds", "mpp", "mpp_from", "scale_to_try")
        write_table(self.files.path("summary.csv"), self.rows, columns)
        totals = {"images": len(self.rows), "nuclei": sum(row["nuclei"] for row in self.rows)}
        totals["arithmetic"] = self.arithmetic
        write_json(self.files.path("summary.json"), {**totals, "files": self.rows})
        for level, remark in remarks(self.rows, self.model.mpp):
            logger.log(level, "%s: %s", self.output_dir / "summary.csv", remark)
