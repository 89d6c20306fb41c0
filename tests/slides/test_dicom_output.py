"""Nuclei of a DICOM series as DICOM objects: what highdicom reads back is what the GeoJSON says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_slides import FRAME, PATIENT, STUDY, save_dicom
from PIL import Image
from pydicom import dcmread
from scripts.errors import root_cause
from scripts.files import read_json
from skimage.draw import polygon
from slides import segment_slide

hd = pytest.importorskip("highdicom", reason="highdicom is not installed: pip install -r requirements-dicom.txt")

OUTPUTS = ["geojson", "csv", "dicom_ann", "dicom_seg"]
REAL = {
    "_target_": "scripts.networks.loading.load_network", "path": "@ckpt_path", "device": "@device", "info": "@model",
    "precision": "@encoder_precision",
}  # fmt: skip
SERIES = "1.2.826.0.1.3680043.8.498.3"


def save_series(folder: Path, pixels: np.ndarray, mpp: float = 0.25, **changes) -> Path:
    """A series of two levels, a label and somebody's annotations; the folder."""
    folder.mkdir()
    save_dicom(folder / "b_half.dcm", pixels[::2, ::2], SERIES, mpp=2 * mpp, **changes)
    save_dicom(folder / "a_full.dcm", pixels, SERIES, mpp=mpp, **changes)
    save_dicom(folder / "c_label.dcm", pixels[:64, :64], SERIES, "LABEL")
    save_dicom(folder / "d_others.dcm", pixels[:64, :64], "1.2.7", Modality="ANN")
    return folder


@pytest.fixture(scope="module")
def pixels(bundle_root) -> np.ndarray:
    """Real tissue, of sides that are no multiples of the tiles'."""
    path = bundle_root / "sample" / "sample_tnbc" / "images" / "05_3.png"
    return np.asarray(Image.open(path).convert("RGB"))[:310, :290]


def segment(bundle_root: Path, series: Path, out: Path, **options) -> Path:
    if options.pop("real", False):
        options |= {"network": REAL, "ckpt_path": str(bundle_root / "models" / "model.pt")}
    segment_slide(bundle_root, series, out, **{"outputs": OUTPUTS, "tissue_threshold": 0, **options})
    return next(path.parent for path in out.rglob("summary.json"))


@pytest.fixture(scope="module")
def result(bundle_root, pixels, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("dicom")
    series = save_series(folder / "series", pixels)
    return series, segment(bundle_root, series, folder / "out", real=True)


def features(folder: Path) -> list[dict]:
    return json.loads((folder / "nuclei.geojson").read_text())["features"]


def ring(feature: dict) -> np.ndarray:
    return np.array(feature["geometry"]["coordinates"][0][:-1])


def test_annotations_are_the_outlines_and_measures_of_the_geojson(result):
    series, folder = result
    read = hd.ann.annread(folder / "nuclei_ann.dcm")
    (group,) = read.get_annotation_groups()
    found, expected = group.get_graphic_data("2D"), features(folder)
    assert len(found) == len(expected) > 20
    for outline, feature in zip(found, expected):
        np.testing.assert_allclose(outline, ring(feature), atol=1e-4)
    names, values, units = group.get_measurements()
    by_name = {name.value: (column, unit.value) for name, column, unit in zip(names, values.T, units)}
    for code, column, unit in (("42798000", "area_um2", "um2"), ("131191004", "perimeter_um", "um"),
                               ("uncertainty", "uncertainty", "1")):  # fmt: skip
        wanted = [feature["properties"]["measurements"][column] for feature in expected]
        np.testing.assert_allclose(by_name[code][0], wanted, rtol=1e-6)
        assert by_name[code][1] == unit
    assert read.AnnotationCoordinateType == "2D" and read.PixelOriginInterpretation == "VOLUME"
    base = dcmread(series / "a_full.dcm", stop_before_pixels=True)
    assert [one.ReferencedSOPInstanceUID for one in read.ReferencedImageSequence] == [base.SOPInstanceUID]
    assert group.annotated_property_type.value == "84640000" and group.label == "Nucleus"
    assert group.algorithm_type.value == "AUTOMATIC" and group.algorithm_identification.name == "AMA-SAM"


def test_results_are_of_the_sources_patient_study_and_specimen_and_a_series_of_their_own(result):
    _, folder = result
    new = set()
    for name in ("nuclei_ann.dcm", "nuclei_seg.dcm"):
        read = dcmread(folder / name)
        for attribute, value in PATIENT.items():
            assert (read.get(attribute) or None) == value, attribute
        assert read.StudyInstanceUID == STUDY and read.ContainerIdentifier == "C-9"
        assert read.SpecimenDescriptionSequence[0].SpecimenIdentifier == "C-9-1"
        new |= {read.SeriesInstanceUID, read.SOPInstanceUID}
    assert len(new) == 4 and SERIES not in new
    assert read.FrameOfReferenceUID == FRAME


def test_the_segmentation_is_of_the_level_that_was_segmented(result):
    series, folder = result
    read = hd.seg.segread(folder / "nuclei_seg.dcm")
    base = dcmread(series / "a_full.dcm", stop_before_pixels=True)
    size = base.TotalPixelMatrixRows, base.TotalPixelMatrixColumns
    assert (read.Rows, read.Columns) == (base.Rows, base.Columns)
    assert [uid for _, _, uid in read.get_source_image_uids()] == [base.SOPInstanceUID]
    assert read.ImageOrientationSlide == base.ImageOrientationSlide
    mask = read.get_total_pixel_matrix(combine_segments=True)
    expected = np.zeros(size, bool)
    for feature in features(folder):
        x, y = ring(feature).T - 0.5
        expected[polygon(y, x, size)] = True
    np.testing.assert_array_equal(mask.astype(bool), expected)
    # a nucleus' measured area is that of its pixels: outline and pixels tell the same, but for holes
    area = sum(feature["properties"]["measurements"]["area_um2"] for feature in features(folder))
    assert mask.sum() * 0.25**2 == pytest.approx(area, rel=0.02)


def test_a_finer_slide_is_segmented_at_its_second_level(bundle_root, pixels, tmp_path):
    series = save_series(tmp_path / "series", pixels.repeat(2, 0).repeat(2, 1), 0.125)
    folder = segment(bundle_root, series, tmp_path / "out", real=True)
    half = dcmread(series / "b_half.dcm", stop_before_pixels=True)
    seg, ann = hd.seg.segread(folder / "nuclei_seg.dcm"), hd.ann.annread(folder / "nuclei_ann.dcm")
    assert [uid for _, _, uid in seg.get_source_image_uids()] == [half.SOPInstanceUID]
    mask = seg.get_total_pixel_matrix(combine_segments=True)
    assert mask.shape == pixels.shape[:2]
    full = dcmread(series / "a_full.dcm", stop_before_pixels=True)
    assert ann.ReferencedImageSequence[0].ReferencedSOPInstanceUID == full.SOPInstanceUID
    for outline, feature in zip(ann.get_annotation_groups()[0].get_graphic_data("2D"), features(folder)):
        np.testing.assert_allclose(outline, ring(feature), atol=1e-4)
        x, y = (np.array(feature["properties"]["centroid"]) / 2).astype(int)
        assert mask[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].any()


def test_wsidicom_reads_the_annotations(result):
    wsidicom = pytest.importorskip("wsidicom", reason="wsidicom is not installed")
    _, folder = result
    (instance,) = wsidicom.AnnotationInstance.open([folder / "nuclei_ann.dcm"])
    (group,) = instance.groups
    assert instance.coordinate_type == "image" and group.label == "Nucleus" and len(group) == len(features(folder))
    for annotation, feature in zip(group.annotations, features(folder)):
        np.testing.assert_allclose(annotation.geometry.to_list_coords(), ring(feature), atol=1e-4)
        assert annotation.measurements[0].value == pytest.approx(feature["properties"]["measurements"]["area_um2"])


def test_pydicom_finds_each_value_valid(result, monkeypatch):
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    for name in ("nuclei_ann.dcm", "nuclei_seg.dcm"):
        assert len(list(dcmread(result[1] / name).iterall())) > 100


def test_an_unknown_patient_stays_unknown(bundle_root, pixels, tmp_path):
    """Files of published sets often lack attributes that may be empty, and must be there."""
    series = save_series(tmp_path / "series", pixels, PatientID=None, StudyTime=None)
    read = dcmread(segment(bundle_root, series, tmp_path / "out") / "nuclei_ann.dcm")
    assert "PatientID" in read and not read.PatientID and read.PatientName == PATIENT["PatientName"]


@pytest.mark.parametrize("kind", ["tiff", "no frame of reference", "no highdicom"])
def test_what_cannot_be_written_is_told_before_anything_is_segmented(bundle_root, pixels, tmp_path, monkeypatch, kind):
    if kind == "tiff":
        import tifffile

        path, words = tmp_path / "series.tif", "series.tif: it is no DICOM series"
        tifffile.imwrite(path, pixels, tile=(64, 64), resolution=(40000, 40000), resolutionunit="CENTIMETER")
    elif kind == "no highdicom":
        path, words = save_series(tmp_path / "series", pixels), "requirements-dicom.txt"
        monkeypatch.setitem(sys.modules, "highdicom", None)
    else:
        path, words = save_series(tmp_path / "series", pixels, ContainerIdentifier=None), "lacks ContainerIdentifier"
    with pytest.raises((SystemExit, Exception)) as caught:
        segment_slide(bundle_root, path, tmp_path / "out", "Deadly", outputs=OUTPUTS)
    errors = tmp_path / "out" / "errors.csv"
    told = errors.read_text() if errors.exists() else str(root_cause(caught.value))
    assert words in told
    assert not list((tmp_path / "out").rglob("nuclei*"))


def test_a_slide_without_nuclei_has_no_dicom_file_and_says_so(bundle_root, pixels, tmp_path, caplog, result):
    series = save_series(tmp_path / "series", np.full_like(pixels, 255))
    folder = segment(bundle_root, series, tmp_path / "out")
    assert not features(folder) and not list(folder.glob("*.dcm"))
    told = "no nucleus was found, and a DICOM object needs one"
    assert read_json(folder / "summary.json")["not_written"] == {"nuclei_ann.dcm": told, "nuclei_seg.dcm": told}
    assert f"nuclei_ann.dcm and nuclei_seg.dcm not written: {told}" in caplog.text
    assert "not_written" not in read_json(result[1] / "summary.json")


def test_a_kill_while_dicom_is_written_leaves_nothing_and_the_next_run_ends_it(
    bundle_root, pixels, tmp_path, monkeypatch
):
    from highdicom.seg import Segmentation

    series = save_series(tmp_path / "series", pixels)
    with monkeypatch.context() as patched:
        patched.setattr(Segmentation, "save_as", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            segment(bundle_root, series, tmp_path / "out")
    assert not list((tmp_path / "out").glob("[!.]*/*.dcm"))
    folder = segment(bundle_root, series, tmp_path / "out", network="Deadly")  # no tile is segmented again
    assert {path.name for path in folder.glob("*.dcm")} == {"nuclei_ann.dcm", "nuclei_seg.dcm"}
