"""Text that grows without end when it is read is refused in a sentence, before it has grown."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from scripts.data.pixel_size import stated_mpp
from scripts.errors import DataError
from scripts.preparing.formats.aperio_xml import parse_xml
from scripts.slides.reading import open_slide

LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
BILLION = f'<!DOCTYPE x [<!ENTITY a0 "ha">{LAUGHS}]><{{root}}>&a9;</{{root}}>'
QUADRATIC = f'<!DOCTYPE x [<!ENTITY a0 "{"ha" * 50_000}">]><{{root}}>{"&a0;" * 50_000}</{{root}}>'


@pytest.mark.parametrize("bomb", [BILLION, QUADRATIC])
def test_annotations_whose_entities_blow_up_are_refused(tmp_path, bomb):
    (tmp_path / "a.xml").write_text(bomb.format(root="Annotations"))
    with pytest.raises(DataError, match="a.xml: the file cannot be read as XML .*amplification"):
        parse_xml(str(tmp_path / "a.xml"), "Annotations")


def test_entities_that_name_files_bring_nothing_of_them(tmp_path):
    (tmp_path / "secret").write_text("secret")
    entity = f'<!DOCTYPE x [<!ENTITY a SYSTEM "{(tmp_path / "secret").as_uri()}">]>'
    (tmp_path / "a.xml").write_text(f"{entity}<Annotations>&a;</Annotations>")
    with pytest.raises(DataError, match="a.xml: the file cannot be read as XML .*undefined entity"):
        parse_xml(str(tmp_path / "a.xml"), "Annotations")


@pytest.mark.parametrize("reader", [stated_mpp, open_slide])
def test_an_image_whose_description_blows_up_is_refused(tmp_path, reader):
    about = BILLION.format(root="OME").encode()
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64, 3), "u1"), tile=(64, 64), description=about, metadata=None)
    with pytest.raises(DataError, match="a.tif: .*amplification"):
        reader(tmp_path / "a.tif")
