"""What MONAI Label's stock app asks of the bundle, and what our app is made of, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import tiny_bundle, tiny_model
from label_server import missing_package
from monai.bundle import ConfigParser
from PIL import Image
from scripts.data.synthetic import make_synthetic
from scripts.errors import DataError
from scripts.nuclei.label_maps import ServedLabelMapd
from slides import make_drawing, save_slide

REPO = Path(__file__).resolve().parents[2]
needs_label = pytest.mark.skipif(missing_package() is not None, reason=f"{missing_package()} is not installed")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("data") / "synthetic")


@pytest.fixture(scope="module")
def bundle(bundle_root, tmp_path_factory):
    return tiny_bundle(bundle_root, tmp_path_factory.mktemp("label") / "ama_sam")


@pytest.fixture
def tile(synthetic, tmp_path):
    """A tile that is not square: swapped axes would show."""
    source = sorted((synthetic / "synthetic_pink" / "images").iterdir())[0]
    path = tmp_path / "tile.png"
    Image.open(source).convert("RGB").crop((0, 0, 100, 70)).save(path)
    return path


# --- configs


def test_each_config_says_what_the_stock_app_reads(bundle_root):
    """Of single files, without merging; see monailabel/tasks/infer/bundle.py and train/bundle.py."""
    inference, train, metadata = (
        json.loads((bundle_root / "configs" / f"{name}.json").read_text())
        for name in ("inference", "train", "metadata")
    )
    for name in ("bundle_root", "device", "network_def", "preprocessing", "post_transforms", "inferer"):
        assert name in inference, name
    assert isinstance(inference["displayable_configs"], dict)
    assert "displayable_configs" not in train, "a client that does not send all of them could not train"
    assert isinstance(train["train"]["handlers"], list) and all(isinstance(h, dict) for h in train["train"]["handlers"])
    assert {"network", "device", "bundle_root", "run", "output_dir"} <= train.keys() and isinstance(train["run"], str)
    assert {"data"} <= train["train"]["dataset"].keys() and {"data"} <= train["validate"]["dataset"].keys()
    assert "max_epochs" in train["train"]["trainer"]
    inputs, outputs = (metadata["network_data_format"][name] for name in ("inputs", "outputs"))
    assert list(inputs) == ["image"] and len(inputs["image"]["spatial_shape"]) == 2
    assert list(outputs) == ["pred"] and outputs["pred"]["channel_def"] == {"0": "background", "1": "nuclei"}


def test_nothing_shadows_the_model(bundle_root):
    """The stock app loads the *.pt with the shortest name, whatever it holds."""
    assert [path.name for path in (bundle_root / "models").glob("*.pt")] == ["model.pt"]


def test_a_label_map_is_what_the_servers_writer_expects():
    instances = np.zeros((1, 3, 5), np.int32)
    instances[0, 2, 4] = 300
    given = {"image": "pixels", "pred": "logits", "instances": instances, "image_path": "a.jpg"}
    item = ServedLabelMapd()(given)
    assert item["pred"].shape == (5, 3) and item["pred"].dtype == np.uint16 and item["pred"][4, 2] == 300
    assert item["result_extension"] == ".png" and "image" not in item and item["image_path"] == "a.jpg"
    assert ServedLabelMapd()({**given, "result_extension": ".tif"})["result_extension"] == ".tif"
    with pytest.raises(ValueError, match="70000 nuclei"):
        ServedLabelMapd()({**given, "instances": instances + 69_700})


@pytest.mark.parametrize("device", ["cpu", "$torch.device('cpu')"])
def test_the_configs_take_a_device_by_its_name(bundle, device):
    for config, part in (("inference", "inferer"), ("inference", "amp"), ("train", "amp"), ("train", "num_workers")):
        parser = ConfigParser()
        parser.read_config(str(bundle / "configs" / f"{config}.json"))
        parser.config.update({"bundle_root": str(bundle), "device": device})
        parser.get_parsed_content(part)


# --- the stock app's classes


@pytest.fixture
def label_classes(monkeypatch):
    """MONAI Label's own classes; it must not import the tiny bundle's copy of ``scripts`` in the place of ours."""
    monkeypatch.setenv("MONAI_LABEL_RELOAD_APP_LIB", "false")
    monkeypatch.syspath_prepend(str(REPO / "apps" / "ama_sam"))
    import lib.torchvision_operators  # noqa: F401
    from monailabel.tasks.infer.bundle import BundleInferTask
    from monailabel.tasks.train.bundle import BundleTrainTask

    return BundleInferTask, BundleTrainTask


@needs_label
def test_the_stock_infer_task_gives_the_instances_of_inferring(label_classes, bundle, tile, tmp_path):
    task = label_classes[0](str(bundle), {})
    assert task.is_valid() and task.info()["labels"] == {"nuclei": 1} and task.info()["dimension"] == 2
    assert None not in task.info()["config"].values()
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.config.update(
        {"bundle_root": str(bundle), "dataset_dir": str(tile.parent), "output_dir": str(tmp_path / "o")}
    )
    parser.get_parsed_content("evaluator").run()
    wanted = np.asarray(Image.open(tmp_path / "o" / "tile_instances.png"))
    file, _ = task({"image": str(tile), "device": "cpu"})
    found = np.asarray(Image.open(file))
    assert found.dtype == np.uint16 and np.array_equal(found, wanted) and found.shape == (70, 100) and found.any()
    stricter = np.asarray(Image.open(task({"image": str(tile), "device": "cpu", "threshold": 0.999})[0]))
    assert (stricter > 0).sum() < (found > 0).sum(), "options of a request count"


@needs_label
@pytest.mark.parametrize("mode, suffix", [("RGBA", "png"), ("L", "png"), ("P", "png"), ("RGB", "jpg"), ("RGB", "tif")])
def test_the_stock_infer_task_takes_what_people_upload(label_classes, bundle, tile, tmp_path, mode, suffix):
    path = tmp_path / f"upload.{suffix}"
    Image.open(tile).convert(mode).save(path)
    file, _ = label_classes[0](str(bundle), {})({"image": str(path), "device": "cpu"})
    assert file.endswith(".png") and np.asarray(Image.open(file)).shape == (70, 100)


@needs_label
def test_the_stock_train_task_publishes_a_new_model_after_a_single_label(label_classes, bundle, synthetic, tmp_path):
    name = sorted((synthetic / "synthetic_pink" / "images").iterdir())[0].name
    item = {key: str(synthetic / "synthetic_pink" / f"{key}s" / name) for key in ("image", "label")}
    before = (bundle / "models" / "model.pt").read_bytes()
    datastore = SimpleNamespace(datalist=lambda: [item])
    label_classes[1](str(bundle), {})({"model": "ama_sam", "max_epochs": 1, "device": "cpu"}, datastore)
    assert (bundle / "models" / "model.pt").read_bytes() != before
    assert [path.read_bytes() for path in (bundle / "models" / "previous").glob("*.pt")] == [before]


# --- our app's parts


@pytest.fixture
def app_parts(label_classes):
    from lib import infer, next_tile, schema, studies, train

    return SimpleNamespace(infer=infer, schema=schema, studies=studies, train=train, next_tile=next_tile)


@pytest.fixture
def task(app_parts, bundle, tmp_path):
    (tmp_path / "model").mkdir()
    return app_parts.infer.SegmentNuclei(bundle, {"model_dir": str(tmp_path / "model")})


@pytest.fixture
def knowing_task(app_parts, bundle_root, tmp_path):
    """The same with a network that finds what is dark, and an image of nuclei that are wholly in it."""
    bundle = tiny_bundle(bundle_root, tmp_path / "knowing", inference={"network": {"_target_": "slides.Darkness"}})
    drawing = make_drawing(900, 700, seed=2)
    image = tmp_path / "nuclei.png"
    Image.fromarray(drawing.draw(0, 0, 900, 700, 1.0)).save(image)
    return app_parts.infer.SegmentNuclei(bundle, {"model_dir": str(tmp_path)}), image, drawing.nuclei


@needs_label
def test_our_task_serves_a_published_model_at_once(task, tile, tmp_path):
    first = np.asarray(Image.open(task({"image": str(tile)})[0]))
    tiny_model(tmp_path / "model" / "model.pt", seed=7, targets="hv")
    assert not np.array_equal(np.asarray(Image.open(task({"image": str(tile)})[0])), first)
    (tmp_path / "model" / "model.pt").unlink()
    assert np.array_equal(np.asarray(Image.open(task({"image": str(tile)})[0])), first), "the bundle's own again"


@needs_label
def test_xml_of_our_polygons_read_again_is_the_label_map(app_parts, knowing_task):
    """What is served to QuPath and comes back unchanged is learned as it was found."""
    task, image, nuclei = knowing_task
    answer = task.annotate(str(image), app_parts.schema.RegionRequest(size=(0, 0)), "asap")
    label = app_parts.studies.label_map(image, answer["file"])
    instances = np.asarray(Image.open(task({"image": str(image)})[0]))
    assert instances.max() == len(nuclei) > 5 and np.array_equal(label, instances)


@needs_label
def test_the_three_formats_hold_the_same_polygons(app_parts, knowing_task):
    task, tile, _ = knowing_task
    from xml.etree import ElementTree

    request = app_parts.schema.RegionRequest(location=(0, 0), size=(450, 700))
    geojson = task.annotate(str(tile), request, "json")["params"]
    wanted = [feature["geometry"]["coordinates"][0][:-1] for feature in geojson["features"]]
    xml = ElementTree.parse(task.annotate(str(tile), request, "asap")["file"])
    asap = [[[float(c.get("X")), float(c.get("Y"))] for c in a.iter("Coordinate")] for a in xml.iter("Annotation")]
    dsa = json.loads(Path(task.annotate(str(tile), request, "dsa")["file"]).read_text())
    assert asap == wanted and [[p[:2] for p in e["points"]] for e in dsa["elements"]] == wanted and wanted
    whole = task.annotate(str(tile), app_parts.schema.RegionRequest(size=(0, 0)), "json")["params"]["features"]
    inside = [f for f in whole if f["properties"]["centroid"][0] < 450]
    assert len(whole) > len(inside) and [f["geometry"] for f in inside] == [
        f["geometry"] for f in geojson["features"]
    ], "whole, by their centre"


@needs_label
def test_the_most_uncertain_tile_is_offered_and_looked_at_once(app_parts, tmp_path, tile):
    studies = app_parts.studies.Studies(str(tmp_path / "studies"))
    for name in "abc":
        studies.add_image(name, str(tile), {})
    score, asked = {"a": 0.2, "b": 0.7, "c": 0.5}, []

    def look(path, mpp):
        asked.append(Path(path).stem)
        return score[asked[-1]]

    model = tmp_path / "model.pt"
    model.write_bytes(b"one")
    strategy = app_parts.next_tile.MostUncertain(SimpleNamespace(disagreement=look, get_path=lambda: str(model)))
    assert strategy({"max_images": 1}, studies) == {"id": "a", "weight": 0.2} and asked == ["a"]
    assert strategy({}, studies) == {"id": "b", "weight": 0.7} and asked == ["a", "b", "c"]
    label = tmp_path / "label.png"
    Image.fromarray(np.ones((70, 100), np.uint8)).save(label)
    studies.save_label("b", str(label), "final", {})
    assert strategy({}, studies)["id"] == "c" and len(asked) == 3
    model.write_bytes(b"another")
    assert strategy({}, studies)["id"] == "c" and asked[3:] == ["a", "c"], "another model is asked anew"


@needs_label
def test_patches_of_a_slide_are_offered_once_by_their_disagreement(app_parts, tmp_path, bundle_root):
    drawing = make_drawing(4000, 3000, seed=2)
    slide = save_slide(tmp_path / "slide.tif", drawing, 0.25)
    studies = app_parts.studies.Studies(str(tmp_path / "studies"))
    studies.add_image("slide", str(slide), {})
    asked, model = [], tmp_path / "model.pt"
    model.write_bytes(b"one")

    def look(slide, box, mpp):
        assert mpp == pytest.approx(0.25)
        asked.append(tuple(box))
        return 1 / len(asked)

    task = SimpleNamespace(patch_disagreement=look, get_path=lambda: str(model), mpp_of=lambda slide, mpp: slide.mpp)
    strategy = app_parts.next_tile.MostUncertain(task)
    request = {"image": "slide", "patch_size": (500, 400), "max_images": 3}
    first = strategy(request, studies)
    assert first == {"id": "slide", "weight": 1.0, "bbox": list(asked[0])} and len(asked) == 3
    offered = [tuple(first["bbox"])]
    while (answer := strategy(request, studies)) is not None:
        offered.append(tuple(answer["bbox"]))
    assert len(set(offered)) == len(offered) == len(set(asked)) == len(asked) > 6, "each once, and looked at once"
    for x, y, width, height in offered:
        assert (width, height) == (500, 400) and (drawing.draw(x, y, 500, 400, 1).min(2) < 240).mean() > 0.4
    model.write_bytes(b"another")
    assert strategy(request, studies) is None, "what was offered is not offered again for another model"
    with pytest.raises(DataError, match="slide.*no patch of 4000x3000 pixels has half of it tissue"):
        strategy({**request, "patch_size": (4000, 3000)}, studies)


@needs_label
def test_a_patch_is_asked_of_a_slide_of_the_studies(app_parts, tmp_path, tile):
    studies = app_parts.studies.Studies(str(tmp_path / "studies"))
    studies.add_image("tile", str(tile), {})
    model = tmp_path / "model.pt"
    model.write_bytes(b"one")
    strategy = app_parts.next_tile.MostUncertain(SimpleNamespace(get_path=lambda: str(model)))
    for image, problem in (("tile", "it is an image, no slide"), ("other", "there is no such slide")):
        with pytest.raises(DataError, match=f"{image}: {problem}"):
            strategy({"image": image, "patch_size": (64, 64)}, studies)


@needs_label
def test_a_store_of_zarr_is_told_and_not_offered(app_parts, tmp_path, tile, caplog):
    (tmp_path / "studies" / "scan.ome.zarr" / "0").mkdir(parents=True)
    studies = app_parts.studies.Studies(str(tmp_path / "studies"))
    told = [record.getMessage() for record in caplog.records]
    assert any("scan.ome.zarr: images here are single files. Convert it to OME-TIFF" in line for line in told)
    studies.add_image("a", str(tile), {})
    assert studies.get_unlabeled_images() == ["a"]


@needs_label
def test_random_tiles_are_no_slides(app_parts, tmp_path, tile, monkeypatch):
    studies = app_parts.studies.Studies(str(tmp_path / "studies"))
    for name in "abc":
        studies.add_image(name, str(tile), {})
    monkeypatch.setattr(app_parts.studies, "slide_of", lambda path: object() if path.stem in "ac" else None)
    strategy = app_parts.next_tile.RandomTile()
    assert {strategy({}, studies)["id"] for _ in range(20)} == {"b"}
    monkeypatch.setattr(app_parts.studies, "slide_of", lambda path: object())
    assert strategy({}, studies) is None


@needs_label
@pytest.mark.parametrize(
    "labels, val_split, pretrained", [(1, 0.25, True), (2, 0, True), (5, 0.25, True), (1, 0.25, False)]
)
def test_training_on_few_images_goes_by_the_recipe_and_holds_a_part_of_them_out(
    app_parts, bundle, synthetic, tmp_path, monkeypatch, labels, val_split, pretrained
):
    """Of one to four labelled images a part of each judges, of five on whole ones; the start counts where it can."""
    images = sorted((synthetic / "synthetic_pink" / "images").iterdir())[:labels]
    studies = app_parts.studies.Studies(str(tmp_path / "studies"))
    for path in images:
        studies.add_image(path.stem, str(path), {})
        studies.save_label(path.stem, str(path.parents[1] / "labels" / path.name), "final", {})
    runs = []
    monkeypatch.setattr(app_parts.train.monai.bundle, "run", lambda **given: runs.append(given))
    task = app_parts.train.TrainOnLabelled(bundle, {"model_dir": str(tmp_path / "model")})
    task({"val_split": val_split, "pretrained": pretrained, "device": "cpu"}, studies)
    (run,) = runs
    listed = json.loads((tmp_path / "model" / "training" / "labelled.json").read_text())
    assert [Path(file).name for file in run["config_file"]] == ["train.json", *(["few_shot.json"] * pretrained)]
    assert run["held_out"] == (0 if labels == 5 else val_split) and len(listed["validation"]) == (labels == 5)
    assert run.get("start_counts") == (val_split > 0 if pretrained else None)
    assert not {"max_epochs", "batches_per_epoch", "learning_rate"} & run.keys(), "as in the configs"
    recipe = json.loads((bundle / "configs" / "few_shot.json").read_text())
    assert task.config()["max_epochs"] == recipe["max_epochs"] and None not in task.config().values()


@needs_label
def test_tiles_without_a_label_are_labelled_by_the_served_model_where_asked_for(
    app_parts, bundle, synthetic, tmp_path, monkeypatch
):
    images = sorted((synthetic / "synthetic_pink" / "images").iterdir())[:3]
    studies = app_parts.studies.Studies(str(tmp_path / "studies"))
    for path in images:
        studies.add_image(path.stem, str(path), {})
    studies.save_label(images[0].stem, str(images[0].parents[1] / "labels" / images[0].name), "final", {})
    save_slide(tmp_path / "s.tif", make_drawing(900, 700, seed=2), 0.25)
    studies.add_image("s", str(tmp_path / "s.tif"), {})
    studies.add_image("damaged", str(images[1]), {})
    damaged = Path(studies.path_of("damaged"))
    damaged.write_bytes(damaged.read_bytes()[:2000])
    runs = []
    monkeypatch.setattr(app_parts.train.monai.bundle, "run", lambda **given: runs.append(given))
    task = app_parts.train.TrainOnLabelled(bundle, {"model_dir": str(tmp_path / "model")})
    task({"use_unlabelled": True, "device": "cpu", "mode": ["single"]}, studies)  # as /info/ has it
    (run,) = runs
    assert [domain.get("labels", True) for domain in run["domains"]] == [True, False] and run["mode"] == "joint"
    assert run["teacher"] == run["init_model"] == str(bundle / "models" / "model.pt")
    listed = json.loads((tmp_path / "model" / "training" / "unlabelled.json").read_text())["training"]
    assert sorted(Path(entry["image"]).stem for entry in listed) == [path.stem for path in images[1:]], (
        "no slide, none damaged"
    )
    for path in images[1:]:
        studies.save_label(path.stem, str(path.parents[1] / "labels" / path.name), "final", {})
    with pytest.raises(Exception, match="every tile of the studies has a label"):
        task({"use_unlabelled": True, "device": "cpu"}, studies)


@needs_label
def test_a_moody_network_disagrees_more_with_itself(app_parts, bundle_root, knowing_task, tmp_path):
    """And of a slide's patch as much as of the same pixels as an image."""
    sure, image, _ = knowing_task
    moody = tiny_bundle(bundle_root, tmp_path / "moody", inference={"network": {"_target_": "slides.Moody"}})
    unsure = app_parts.infer.SegmentNuclei(moody, {"model_dir": str(tmp_path)})
    assert 0 < sure.disagreement(str(image), 0.25) < 0.7 * unsure.disagreement(str(image), 0.25)
    slide = app_parts.studies.slide_of(save_slide(tmp_path / "s.tif", make_drawing(900, 700, seed=2), 0.25))
    Image.open(image).crop((300, 200, 556, 392)).save(tmp_path / "part.png")
    score = sure.patch_disagreement(slide, [300, 200, 256, 192], 0.25)
    assert score == pytest.approx(sure.disagreement(str(tmp_path / "part.png"), 0.25), rel=0.05) and score > 0


@needs_label
def test_names_of_images_are_no_configs(app_parts, bundle, synthetic, tmp_path, monkeypatch):
    """Whoever filled the folder chose the names; the file's name is the marker that an expression would make."""
    monkeypatch.chdir(tmp_path)
    names = "$open('marker', 'w').close()", "@network", "%train.json", "a#1", "b, 'c' {d}"
    pairs = sorted((synthetic / "synthetic_pink" / "images").iterdir())
    final = tmp_path / "studies" / "labels" / "final"
    final.mkdir(parents=True)
    for name, image in zip(names, pairs):
        (tmp_path / "studies" / f"{name}.png").write_bytes(image.read_bytes())
        (final / f"{name}.png").write_bytes((image.parents[1] / "labels" / image.name).read_bytes())
    studies = app_parts.studies.Studies(str(tmp_path / "studies"))
    task = app_parts.train.TrainOnLabelled(bundle, {"model_dir": str(tmp_path / "model")})
    task({"max_epochs": 1, "batches_per_epoch": 1, "device": "cpu", "publish": "always"}, studies)
    listed = json.loads((tmp_path / "model" / "training" / "labelled.json").read_text())
    assert sorted(Path(e["image"]).stem for part in listed.values() for e in part) == sorted(names)
    assert (tmp_path / "model" / "model.pt").is_file() and not (tmp_path / "marker").exists()


@needs_label
def test_an_index_that_came_with_the_studies_leads_nowhere(app_parts, tmp_path, tile):
    """``datastore_v2.json`` is data: ids, folders and tags in it may be anybody's."""
    from fastapi import HTTPException

    folder, outside = tmp_path / "studies", tmp_path / "outside"
    (folder / "sub" / "labels").mkdir(parents=True)
    outside.mkdir()
    for place in (outside, folder / "sub"):
        (place / "tile.png").write_bytes(tile.read_bytes())
    index = {"name": "", "description": "", "objects": {}}
    (folder / "link.png").symlink_to(outside / "tile.png")
    for image in ("../outside/tile", "sub/tile", str(outside / "tile"), "link"):
        labels = {"../../outside": {"ext": ".png"}, "final": {"ext": ".png"}}
        index["objects"][image] = {"image": {"ext": ".png", "info": {}}, "labels": labels}
    (folder / "datastore_v2.json").write_text(json.dumps(index))
    studies = app_parts.studies.Studies(str(folder))
    for image in studies.list_images():
        for ask in (studies.get_image_uri, studies.remove_image):
            with pytest.raises(HTTPException, match="leads out of the studies|has no folders"):
                ask(image)
        for tag in studies.get_labels_by_image_id(image):
            with pytest.raises(HTTPException, match="leads out of the studies|has no folders"):
                studies.remove_label(image, tag)
    assert len(studies.list_images()) == 4 and studies.get_unlabeled_images() == []
    assert (outside / "tile.png").is_file() and (folder / "sub" / "tile.png").is_file()


@needs_label
@pytest.mark.parametrize("given, mpp", [((0.5, 0.25), 0.5), ((None, 0, "0.25"), 0.25), ((0, None), None)])
def test_the_first_known_mpp_counts(app_parts, given, mpp):
    assert app_parts.studies.known_mpp_of(*given) == mpp
    for wrong in ("$1", "inf", [0.5], {}):
        with pytest.raises(DataError, match="no number of micrometres"):
            app_parts.studies.known_mpp_of(wrong)
