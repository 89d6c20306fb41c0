"""Files that a client sends may not have others of the server's read in their place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from label_server import missing_package
from scripts.errors import DataError
from slides import make_drawing, save_slide

REPO = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(missing_package() is not None, reason=f"{missing_package()} is not installed")
PIXELS = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)

META = (
    "ObjectType = Image\nNDims = 2\nBinaryData = True\nDimSize = 64 64\nElementNumberOfChannels = 3\n"
    "ElementType = MET_UCHAR\nElementDataFile = {}\n"
)
NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 3 64 64\nkinds: vector domain domain\nencoding: raw\n{}: {}\n\n"
OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0"><Pixels '
    'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="64" SizeY="64" SizeZ="1" SizeC="1" SizeT="1"><Channel '
    'ID="Channel:0:0" SamplesPerPixel="1"/><TiffData IFD="0" PlaneCount="1"><UUID FileName="{}">urn:uuid:{}</UUID>'
    "</TiffData></Pixels></Image></OME>"
)


@pytest.fixture
def uploads(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "apps" / "ama_sam"))
    from lib import uploads

    return uploads


@pytest.fixture
def private(tmp_path):
    """A file of the server in the formats that a header may name."""
    folder = tmp_path / "private"
    folder.mkdir()
    PIXELS.tofile(folder / "pixels.raw")
    tifffile.imwrite(folder / "pixels.tif", PIXELS[..., 0].astype(np.uint16))
    return folder


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def references(private):
    for raw in (str(private / "pixels.raw"), "private/pixels.raw"):
        yield "a.mha", META.format(raw)
        yield "a.mhd", META.format(raw)
        yield "a.mha", "Comment = ElementDataFile = LOCAL\n" + META.format(raw)
        yield "a.mha", META.format(raw).replace("ElementDataFile", "elementDataFile")
        yield "a.nrrd", NRRD.format("data file", raw)
        yield "a.nrrd", NRRD.format("Datafile", raw).replace("\n", "\r\n")
    yield "a.mha", META.format(f"LIST 2\n{private / 'pixels.raw'}")  # ITK dies of it
    yield "a.mha", META.format("pixels%03d.raw 1 1 1")
    yield "a.mha", b"ObjectType = Image\n"
    yield "a.vms", "[Virtual Microscope Specimen]\nNoLayers=1\n"
    yield "a.tif", "[Virtual Microscope Specimen]\nNoLayers=1\n"
    yield "a.svs", META.format("LOCAL")
    yield "a.mrxs", b"\xff\xd8\xff"
    yield "a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n"


def test_a_file_that_names_others_is_refused(uploads, private, tmp_path):
    for name, content in references(private):
        with pytest.raises(DataError, match="other files|several files|cannot be read"):
            uploads.check_self_contained(write(tmp_path / name, content))


@pytest.mark.parametrize("big", [False, True])
def test_an_ome_tiff_is_one_file(uploads, private, tmp_path, big):
    path = tmp_path / "a.ome.tif"
    for name in (str(private / "pixels.tif"), "private/pixels.tif"):
        tifffile.imwrite(
            path, PIXELS[..., 0].astype(np.uint16), bigtiff=big, description=OME.format(name, 2), metadata=None
        )
        with pytest.raises(DataError, match="other files"):
            uploads.check_self_contained(path)
    tifffile.imwrite(path, PIXELS[..., 0].astype(np.uint16), bigtiff=big, description=OME.format("a", 1), metadata=None)
    uploads.check_self_contained(path)


def test_whole_files_pass(uploads, tmp_path):
    import itk
    from PIL import Image

    for name in ("a.mha", "a.nrrd", "a.nii.gz"):
        itk.imwrite(itk.image_from_array(PIXELS[..., 0].copy()), str(tmp_path / name))
    write(tmp_path / "b.nrrd", NRRD.replace("{}: {}\n", "").encode() + PIXELS.tobytes())
    write(tmp_path / "b.mha", META.format("LOCAL").encode() + PIXELS.tobytes())
    for name in ("a.png", "a.jpg", "a.bmp", "a.tif"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    for kind in ("tiff", "ome", "svs"):
        save_slide(tmp_path / f"{kind}.{'svs' if kind == 'svs' else 'tif'}", make_drawing(512, 512), 0.5, kind)
    for path in sorted(tmp_path.iterdir()):
        uploads.check_self_contained(path)


def test_what_is_sent_is_kept_for_the_request_and_under_no_name_of_its_own(uploads, tmp_path):
    source = write(tmp_path / "a.png", b"content")
    with source.open("rb") as file, uploads.stored(SimpleNamespace(filename="../../$x.PNG", file=file)) as path:
        assert path.name == "upload.png" and path.read_bytes() == b"content"
    assert not path.exists() and not path.parent.exists()
    for name in ("a", "a.txt", "a.", ".png", "a.tar.gz", f"a.{'x' * 300}", None, "a.png\0"):
        with pytest.raises(DataError, match="format .* is not known"), source.open("rb") as file:
            with uploads.stored(SimpleNamespace(filename=name, file=file)):
                pass
    with uploads.stored(None) as nothing:
        assert nothing is None
