"""The recipe in slides.md makes SpatialData of a slide's GeoParquet."""

from __future__ import annotations

import geopandas
import pytest
from slides import make_drawing, save_slide, segment_slide

spatialdata = pytest.importorskip("spatialdata", reason="spatialdata is not installed: pip install spatialdata")


def test_the_recipe_gives_outlines_and_measures_joined_by_id(bundle_root, tmp_path, monkeypatch):
    drawing = make_drawing(1024, 1024, seed=2)
    folder = segment_slide(bundle_root, save_slide(tmp_path / "slide.tif", drawing, 0.25), tmp_path / "OUT")
    text = (bundle_root / "docs" / "slides.md").read_text(encoding="utf-8")
    recipe = text.partition("<!-- spatialdata: begin -->\n```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(recipe, {})  # noqa: S102 - of our own page
    read = spatialdata.read_zarr(tmp_path / "OUT" / "slide.zarr")
    written = geopandas.read_parquet(folder / "nuclei.parquet").set_index("id")
    shapes, table = spatialdata.join_spatialelement_table(
        sdata=read, spatial_element_names="nuclei", table_name="measures", match_rows="left"
    )
    assert len(written) == len(drawing.nuclei) > 5
    assert list(shapes["nuclei"].index) == list(table.obs["nucleus"]) == list(written.index)
    assert shapes["nuclei"].geometry.geom_equals(written.geometry).all()
    assert list(table.to_df()["area_um2"]) == pytest.approx(list(written["area_um2"]))
    x0, y0, x1, y1 = written.geometry.iloc[3].bounds
    options = {"axes": ("x", "y"), "min_coordinate": [x0, y0], "max_coordinate": [x1, y1]}
    part = spatialdata.bounding_box_query(read, **options, target_coordinate_system="global")
    assert written.index[3] in part["nuclei"].index
