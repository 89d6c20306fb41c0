from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scripts.data.pixel_size import same_mpp
from scripts.errors import DataError
from scripts.files import write_json, write_table
from scripts.lock import only_writer
from scripts.nuclei.geojson import NucleusFormat, csv_text
from scripts.nuclei.measures import Nucleus
from scripts.slides.dicom_output import DICOM_OUTPUTS, DicomOutput, check_dicom
from scripts.slides.dicom_source import find_source
from scripts.slides.heat_map import write_overview
from scripts.slides.journal import Journal
from scripts.slides.nuclei_output import STREAM, USUAL, NucleiOutput
from scripts.slides.ownership import Ownership
from scripts.slides.pipeline import ReadTile, TilePipeline
from scripts.slides.reading import open_slide
from scripts.slides.result_folder import ResultFolder, file_stamp
from scripts.slides.slide import Slide
from scripts.slides.tile_overlays import write_tile_overlays
from scripts.slides.tile_table import TILE_COLUMNS, domain_summary, tile_domain, tile_row, uncertain_area
from scripts.slides.tiles import Tile, TissueMap, make_tiles, parse_region
from scripts.zarr_library import zarr_library
from tqdm import tqdm

__all__ = ["SlideSegmenter"]

logger = logging.getLogger(__name__)


class SlideSegmenter:
    """
    Finds the nuclei of one slide tile by tile and files them.

    Only a few tiles are in memory at any time. Each finished tile is in a journal: a run that was killed goes on
    where it stopped and gives the same files. The folder gets its name when the slide is done, see ``ResultFolder``:

    - ``nuclei.geojson``, ``nuclei.csv``, ``nuclei.parquet``: see ``NucleusFormat``, in level-0 pixels;
    - ``nuclei.ome.tif``, ``nuclei.ome.zarr``, where asked for: label map of level 0, see ``slide_label_map``;
    - ``nuclei_ann.dcm``, ``nuclei_seg.dcm``: of a DICOM series on request, see ``DicomOutput``;
    - ``tiles.csv``: one row for each tile, see ``tile_table``;
    - ``overview.jpg``: thumbnail and density of nuclei;
    - ``tile_typical_<n>.jpg``, ``tile_unusual_<n>.jpg``: nuclei on a few tiles, see ``tile_overlays``;
    - ``summary.json``: counts, sizes, settings; ``unread.csv``, if any: areas that could not be read.

    Args:
        pipeline: finds the nuclei in tiles.
        settings: plain values on which nuclei depend besides the arguments here, such as the weights' checksum: a
            journal with others is not continued.
        mpp: micrometres per level-0 pixel; None takes what the slide says.
        target_mpp: what the network was trained at; slides are resampled to it.
        region: ``x,y,width,height`` in level-0 pixels, or None for all of the slide.
        tile_size: side of a tile in pixels at ``target_mpp``.
        margin_um: micrometres around a tile's core that the tile shows besides; more than a nucleus.
        size_multiple: the network takes sides that are multiples of this.
        tissue_threshold: see ``TissueMap``; 0 segments glass as well.
        class_name: QuPath's class of the nuclei.
        with_spread: whether the pipeline's nuclei tell their spread over views.
        outputs: which of ``OUTPUTS`` to write.
        version: of this bundle, for files that tell what made them.
        resume: go on with an unfinished run and leave finished slides alone; else begin anew.
    """

    def __init__(
        self,
        pipeline: TilePipeline,
        settings: Mapping[str, Any],
        mpp: float | None = None,
        target_mpp: float = 0.25,
        region: str | Sequence[int] | None = None,
        tile_size: int = 1024,
        margin_um: float = 16.0,
        size_multiple: int = 32,
        tissue_threshold: float = 0.06,
        class_name: str = "Nucleus",
        with_spread: bool = False,
        outputs: Sequence[str] = USUAL,
        version: str = "unknown",
        resume: bool = True,
    ) -> None:
        for name, value in {"mpp": mpp, "target_mpp": target_mpp}.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive micrometres per pixel, got {value}")
        self.pipeline = pipeline
        self.mpp, self.region, self.size_multiple, self.resume = mpp, region, size_multiple, resume
        self.target_mpp, self.tile_size, self.margin_um = target_mpp, tile_size, margin_um
        self.tissue_threshold, self.class_name, self.with_spread = tissue_threshold, class_name, with_spread
        self.outputs, self.version = sorted(set(outputs)), version
        check_dicom(self.outputs)
        if "ome.zarr" in self.outputs:
            zarr_library("ome.zarr")
        # read from here, so that a result can never depend on something its journal does not know
        self.settings = {
            **settings,
            **{name: getattr(self, name) for name in ("target_mpp", "tile_size", "margin_um", "size_multiple")},
            **{name: getattr(self, name) for name in ("tissue_threshold", "class_name", "outputs")},
        }

    def __call__(self, path: str | os.PathLike, folder: str | os.PathLike) -> dict[str, Any]:
        """
        Args:
            path: the slide.
            folder: where its results go.

        Returns:
            the content of ``summary.json``.

        Raises:
            DataError: when the slide cannot be used: not readable, mpp unknown, region outside; when the folder holds
                anything else, see ``ResultFolder.check``; when another process is at it.
        """
        path, folder = Path(path), Path(folder)
        results = ResultFolder(folder)
        results.check(path)
        with only_writer(folder):
            results.check(path)  # what another process wrote in between may be of another slide
            results.restore()
            return self._segment_slide(path, results)

    def _segment_slide(self, path: Path, results: ResultFolder) -> dict[str, Any]:
        slide = open_slide(path)
        mpp = self._mpp(slide)
        region = parse_region(self.region, slide)
        settings = {"file": file_stamp(path), "mpp": mpp, "region": list(region), **self.settings}
        if slide.origin != (0, 0):
            settings["origin"] = list(slide.origin)
        if self.resume and (done := results.finished(settings)) is not None:
            logger.info("%s: an earlier run finished it", path)
            return done

        scale = 1.0 if same_mpp(self.target_mpp, mpp) else self.target_mpp / mpp
        dicom = None
        if set(self.outputs) & set(DICOM_OUTPUTS):
            source = find_source(slide, scale)
            dicom = DicomOutput(source, self.class_name, self.version, self.settings.get("weights"))
        margin = round(self.margin_um / (mpp * scale))
        tissue = TissueMap(slide, region, mpp, self.tissue_threshold)
        grid = make_tiles(tuple(side / scale for side in region), self.tile_size, margin, self.size_multiple)
        tiles = [tile for tile in grid if tissue.touches(*(side * scale for side in tile.core))]
        if not tiles:
            logger.warning("%s: no tissue found, hence no nuclei; --tissue_threshold 0 looks at all of it", path)

        unfinished = results.begin(self.resume)
        form = NucleusFormat(path.name, mpp * scale, scale, class_name=self.class_name, with_spread=self.with_spread)
        output = NucleiOutput(form, self.outputs, dicom)
        heads = {**output.heads, "tiles.csv": csv_text([TILE_COLUMNS]).encode()}
        # files that were begun with other names of measures cannot be gone on with
        journal = Journal(unfinished, heads, {**settings, "columns": form.columns})
        start = time.perf_counter()
        try:
            totals = self._segment(slide, tiles, region, tissue, output, Ownership(tiles, margin), journal)
            journal.finish(output.tails)
        finally:
            journal.close()
        lacking = output.finish(unfinished, (slide.height, slide.width), mpp, totals["nuclei"])
        seconds = time.perf_counter() - start
        unread, domains, (uncertain, area) = (totals.pop(name) for name in ("unread", "domains", "uncertain"))
        if unread and len(unread) == len(tiles) and not totals["nuclei"]:
            results.discard()
            raise DataError(path, f"no tile of it can be read ({unread[0]['problem']})", "Copy it again")
        _warn(path, unread, totals["cut"], len(tiles))
        if unread:
            write_table(unfinished / "unread.csv", unread)
        density = totals["nuclei"] / tissue.area_mm2 if tissue.area_mm2 else 0.0
        summary = {
            "slide": str(path),
            "size": [slide.width, slide.height],
            "origin": list(slide.origin),
            "tissue_mm2": round(tissue.area_mm2, 4),
            "nuclei_per_mm2": round(density, 1),
            **totals,
            "uncertainty": round(uncertain / area, 4) if area else None,
            "tiles": len(tiles),
            "tiles_without_tissue": len(grid) - len(tiles),
            "tiles_with_unread_areas": len(unread),
            **domain_summary(domains),
            "seconds": round(seconds, 2),
            "network_share": round(self.pipeline.network_seconds / seconds, 3),
            "settings": settings,
        }
        if lacking:
            why = "no nucleus was found, and a DICOM object needs one"
            summary["not_written"] = dict.fromkeys(lacking, why)
            logger.warning("%s: %s not written: %s", path, " and ".join(lacking), why)
        write_overview(unfinished / "overview.jpg", unfinished / STREAM, tissue, mpp)
        summary["overlays"] = write_tile_overlays(unfinished, slide, scale, tiles)
        write_json(unfinished / "summary.json", summary, default=str)
        results.publish()
        if tiles and not totals["nuclei"]:
            logger.warning("%s: no nucleus was found in any of %d tiles", path, len(tiles))
        if summary.get("unusual_tiles") == 1:
            logger.warning("%s: no tile is like the tissue of training (out_of_domain): nuclei may be wrong", path)
        return summary

    def _segment(
        self,
        slide: Slide,
        tiles: list[Tile],
        region: tuple[int, int, int, int],
        tissue: TissueMap,
        output: NucleiOutput,
        owners: Ownership,
        journal: Journal,
    ) -> dict[str, Any]:
        """Segment the tiles that the journal lacks; totals over all of them."""
        totals: dict[str, Any] = {"nuclei": 0, "cut": 0, "tiles_of_earlier_runs": 0, "unread": [], "domains": []}
        totals["uncertain"] = np.zeros(2)
        for tile, record in zip(tiles, journal.records()):
            owners.recall(tile, record["border"])
            _add_up(totals, record)
            totals["tiles_of_earlier_runs"] += 1
        done, form = totals["tiles_of_earlier_runs"], output.form
        found = self.pipeline(slide, form.scale, form.mpp, tiles[done:])
        with tqdm(total=len(tiles), initial=done, desc=slide.path.name, unit="tile", smoothing=0.05) as bar:
            for read, nuclei in found:
                tile = read.tile
                local = form.at(tile.square[:2])
                mine = owners.choose(tile, [n for n in nuclei if _within(local.centroid(n), region)])
                record = {
                    "nuclei": len(mine),
                    "cut": sum(_is_cut(nucleus, tile, slide, form.scale) for nucleus in mine),
                    "unread": _bounds(read),
                    "border": owners.record(tile),
                    "uncertain": uncertain_area(mine),
                    "domain": tile_domain(read, tissue, form.scale, self.pipeline.domain_distance),
                }
                row = tile_row(tile, form.scale, record)
                texts = output.of_tile(mine, tile.square[:2], totals["nuclei"])
                journal.write({**texts, "tiles.csv": csv_text([row]).encode()}, record)
                _add_up(totals, record)
                bar.set_postfix(nuclei=totals["nuclei"], refresh=False)
                bar.update()
        return totals

    def _mpp(self, slide: Slide) -> float:
        if self.mpp is None and slide.mpp is None:
            raise DataError(slide.path, "it does not say its micrometres per pixel", "Give them: --mpp 0.25, for 40x")
        if self.mpp is None:
            return slide.mpp
        if slide.mpp is not None and not same_mpp(self.mpp, slide.mpp):
            logger.warning("%s: says %.4g um per pixel, taken are the given %.4g", slide.path, slide.mpp, self.mpp)
        return float(self.mpp)


def _add_up(totals: dict[str, Any], record: Mapping[str, Any]) -> None:
    totals["nuclei"] += record["nuclei"]
    totals["cut"] += record["cut"]
    totals["uncertain"] += np.array(record["uncertain"])
    if record["domain"]:
        totals["domains"].append(record["domain"])
    if record["unread"]:
        totals["unread"].append(record["unread"])


def _within(point: tuple[float, float], box: tuple[int, int, int, int]) -> bool:
    return box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]


def _is_cut(nucleus: Nucleus, tile: Tile, slide: Slide, scale: float) -> bool:
    """Whether it reaches an edge of its tile beyond which the slide goes on."""
    left, top, side = tile.square
    y0, x0, y1, x1 = nucleus.box
    low = (x0 == 0 and left > 0) or (y0 == 0 and top > 0)
    return (
        low
        or (x1 == side and (left + side) * scale < slide.width)
        or (y1 == side and (top + side) * scale < slide.height)
    )


def _bounds(read: ReadTile) -> dict[str, Any] | None:
    """One box in level-0 pixels around all that could not be read of a tile, and the first problem."""
    if not read.unread:
        return None
    left, top = (min(box[axis] for box, _ in read.unread) for axis in (0, 1))
    right, bottom = (max(box[axis] + box[axis + 2] for box, _ in read.unread) for axis in (0, 1))
    box = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return {**box, "problem": read.unread[0][1]}


def _warn(path: Path, unread: list[dict], cut: int, tiles: int) -> None:
    if unread:
        logger.warning("%s: %d of %d tiles have areas that cannot be read, see unread.csv", path, len(unread), tiles)
    if cut:
        logger.warning("%s: %d nuclei reach the edge of their tile; raise --margin_um", path, cut)
