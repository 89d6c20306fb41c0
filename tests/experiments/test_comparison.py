"""The comparison of an experiment's runs: its numbers, and that an MLflow store is all it needs."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from fakes import FakeVerb, domains_named, open_verb
from PIL import Image
from scripts.errors import DataError, root_cause
from scripts.experiments.bootstrap import Bootstrap
from scripts.experiments.comparison import Comparison, compare_pairs, summarise_variants
from scripts.experiments.experiment import Experiment
from scripts.experiments.left_out import left_out_markdown, summarise_left_out
from scripts.experiments.plan import PlannedRun
from scripts.experiments.plots import plot_differences, plot_low_data, plot_scores
from scripts.experiments.results import Result, Results
from scripts.experiments.tables import comparison_markdown
from scripts.tracking.experiments import ExperimentStore

IMAGES = [f"image{i}" for i in range(12)]


def result(variant, seed, scores, groups="all", domain="tnbc", folder="/data", metric="dice"):
    rows = [{"file": f"{folder}/{name}.png", "domain": domain, metric: str(x)} for name, x in zip(IMAGES, scores)]
    return Result(f"{variant}_seed{seed}", variant, groups, str(seed), rows)


# --- numbers


def test_means_are_over_images_and_spread_is_over_seeds():
    results = Results([result("ama", 0, [0.2, 0.4]), result("ama", 1, [0.6, 0.8]), result("joint", 0, [0.5, 0.7])])
    ama, joint = summarise_variants(results, ["dice"], Bootstrap())
    assert (ama["variant"], ama["seeds"], ama["images"]) == ("ama", 2, 2)
    assert ama["mean"] == pytest.approx(0.5) and ama["std_seeds"] == pytest.approx(np.std([0.3, 0.7], ddof=1))
    assert joint["mean"] == pytest.approx(0.6) and "std_seeds" not in joint, "one seed has no spread"


def test_a_difference_is_paired_by_image_after_averaging_over_seeds():
    """What images share cancels: hard and easy images differ by much more than the two variants do."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.1, 0.9, 12)
    gains = rng.uniform(0.01, 0.03, 12)
    runs = [result("joint", s, hard + d) for s, d in ((0, -0.05), (1, 0.05))]
    runs += [result("ama", s, hard + gains + d) for s, d in ((0, 0.02), (1, -0.02))]
    (row,) = compare_pairs(Results(runs), ["dice"], Bootstrap())
    assert (row["variant"], row["reference"]) == ("ama", "joint")
    assert row["difference"] == pytest.approx(gains.mean())
    assert 0.01 < row["low"] < gains.mean() < row["high"] < 0.03


def test_images_are_paired_by_name_whatever_their_order_and_folder():
    scores = np.linspace(0, 1, 12)
    moved = result("ama", 0, scores + 0.125, folder="/elsewhere")
    moved.rows.reverse()
    (row,) = compare_pairs(Results([result("joint", 0, scores), moved]), ["dice"], Bootstrap())
    assert row["low"] == pytest.approx(0.125) and row["high"] == pytest.approx(0.125)


def test_file_names_that_occur_twice_are_told_apart_by_folder():
    rows = [
        {"file": f"/data/{patient}/1.png", "domain": "tnbc", "dice": str(x)} for patient, x in (("a", 0.1), ("b", 0.9))
    ]
    results = Results([Result("joint", "joint", "all", "0", rows), Result("ama", "ama", "all", "0", rows[::-1])])
    assert compare_pairs(results, ["dice"], Bootstrap())[0]["high"] == 0


def test_the_interval_is_the_percentile_bootstrap_over_images():
    """Against its definition written out, and against the theory for many normal differences."""
    differences = np.random.default_rng(1).normal(0.02, 0.1, 200)
    low, high = Bootstrap(resamples=20_000).interval(differences)
    draws = np.random.default_rng(7).integers(200, size=(20_000, 200))
    expected = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
    assert [low, high] == pytest.approx(expected, abs=5e-4)
    assert high - low == pytest.approx(2 * 1.96 * differences.std() / np.sqrt(200), rel=0.03)
    narrow = Bootstrap(confidence=0.5).interval(differences)
    assert low < narrow[0] < narrow[1] < high
    assert Bootstrap().interval(differences) == Bootstrap().interval(differences), "the seed is fixed"
    assert Bootstrap().interval(differences) != Bootstrap(seed=1).interval(differences)
    assert Bootstrap().interval(differences[:1]) == (None, None)


def test_pairs_are_all_or_those_of_a_reference():
    results = Results([result(v, 0, [x, x + 0.1]) for v, x in (("single", 0.4), ("joint", 0.5), ("ama", 0.7))])
    pairs = [(row["variant"], row["reference"]) for row in compare_pairs(results, ["dice"], Bootstrap())]
    assert pairs == [("joint", "single"), ("ama", "single"), ("ama", "joint")]
    rows = compare_pairs(results, ["dice"], Bootstrap(), reference="joint")
    assert [(row["variant"], row["difference"]) for row in rows] == [
        ("single", pytest.approx(-0.1)),
        ("ama", pytest.approx(0.2)),
    ]


def test_groups_are_compared_among_themselves_and_ordered():
    runs = [
        result(variant, 0, [x, x + 0.1], groups)
        for groups, gain in (("all", 0.0), ("10", 0.1), ("2", 0.2))
        for variant, x in (("joint", 0.5), ("ama", 0.5 + gain))
    ]
    results = Results(runs)
    assert results.groups == ["2", "10", "all"]
    differences = {row["limit_groups"]: row["difference"] for row in compare_pairs(results, ["dice"], Bootstrap())}
    assert differences == {"2": pytest.approx(0.2), "10": pytest.approx(0.1), "all": pytest.approx(0)}


def test_runs_on_different_images_are_not_compared():
    with pytest.raises(DataError, match="ama_seed0: it lacks images of tnbc that joint_seed0 .* image2.png"):
        Results([result("joint", 0, [1, 1, 1]), result("ama", 0, [1, 1])])
    more = result("ama", 0, [1])
    more.rows.append({"file": "/data/x.png", "domain": "other", "dice": "1"})
    with pytest.raises(DataError, match="joint_seed0: it lacks images of other that ama_seed0 .* x.png"):
        Results([result("joint", 0, [1]), more])


def test_a_metric_that_is_not_there_is_told():
    with pytest.raises(DataError, match="no 'dise'. Its metrics are dice"):
        summarise_variants(Results([result("joint", 0, [1])]), ["dise"], Bootstrap())
    assert summarise_variants(Results([result("joint", 0, [1, 2])]), ["merged"], Bootstrap()) == [], "an older run"


def test_a_metric_counts_on_the_images_whose_value_every_run_knows():
    """Without nuclei there is no share of them, without a pixel size no micrometre."""
    runs = [result(v, 0, scores, metric="merged") for v, scores in {"joint": [1, "", 3], "ama": [3, 5, 4]}.items()]
    results = Results(runs)
    joint, ama = summarise_variants(results, ["merged"], Bootstrap())
    assert (joint["mean"], joint["images"]) == (2, 2) and (ama["mean"], ama["images"]) == (3.5, 2)
    (row,) = compare_pairs(results, ["merged"], Bootstrap())
    assert (row["difference"], row["images"]) == (1.5, 2)


def test_the_text_shows_directions_intervals_and_what_is_missing():
    runs = [result("joint", 0, [0.5, 0.6]), result("ama", 0, [0.7, 0.8])]
    results = Results(runs)
    scores = summarise_variants(results, ["dice"], Bootstrap())
    differences = compare_pairs(results, ["dice"], Bootstrap())
    text = comparison_markdown(
        "tnbc", "testing", "tnbc", results, scores, differences, [], {"grl_seed0": "out of\nmemory"}, Bootstrap(10)
    )
    assert "| joint | all | 0 | 0.550 [0.500, 0.600] |" in text
    assert "| ama − joint | all | +0.200 [+0.200, +0.200] |" in text, "no star for two images"
    assert "dice ↑" in text and "- grl_seed0: out of memory" in text


@pytest.mark.parametrize(
    "images, seeds, spread, starred",
    [(10, 3, 0.01, True), (9, 3, 0.01, False), (10, 2, 0.01, False), (10, 3, 0.5, False)],
)
def test_a_star_needs_images_seeds_and_a_difference_beyond_the_spread_of_seeds(images, seeds, spread, starred):
    runs = [
        result(variant, seed, [mean + spread * seed + 0.001 * n for n in range(images)])
        for variant, mean in (("joint", 0.5), ("ama", 0.7))
        for seed in range(seeds)
    ]
    results = Results(runs)
    tables = [rows(results, ["dice"], Bootstrap()) for rows in (summarise_variants, compare_pairs)]
    text = comparison_markdown("tnbc", "testing", "tnbc", results, *tables, [], {}, Bootstrap(10))
    assert ("+0.200 [+0.200, +0.200]*" in text) == starred
    assert "at least 10 images and 3 seeds" in text


# --- domains left out


def without(domain, variant, seed, dice, merged, missed, touching=10):
    rows = [
        {"file": f"{domain}{n}.png", "domain": domain, "dice": str(x), "aji": str(x / 2), "pq": "0.25"}
        for n, x in enumerate(dice)
    ]
    fates = {
        "touching": {"nuclei": touching, "merged": merged} if touching else {"nuclei": 0},
        "by_contrast": [{"nuclei": 4, "missed": missed, "mostly missed": 0.25}, *[{"nuclei": 4}] * 4],
    }
    return Result(f"{variant}_without_{domain}_seed{seed}", variant, "all", str(seed), rows, domain, fates)


def test_domains_left_out_are_one_table_with_the_mean_over_them():
    runs = [
        without("tnbc", "joint", 0, [0.5, 0.7], 0.4, 0.5), without("tnbc", "joint", 1, [0.7, 0.9], 0.2, 0.25),
        without("white", "joint", 0, [0.8], 0, 0.25, touching=0), without("white", "joint", 1, [0.9], 0, 0, touching=0),
        without("tnbc", "hv", 0, [0.6, 0.8], 0.1, 0.25),
    ]  # fmt: skip
    rows = summarise_left_out(Results(runs))
    found = {(row["left_out"], row["variant"], row["metric"]): row for row in rows}
    tnbc = found["tnbc", "joint", "dice"]
    assert tnbc["mean"] == pytest.approx(0.7) and tnbc["std_seeds"] == pytest.approx(np.std([0.6, 0.8], ddof=1))
    assert found["tnbc", "joint", "touching_merged"]["mean"] == pytest.approx(0.3)
    assert found["tnbc", "joint", "palest_missed"]["mean"] == pytest.approx(0.625), "missed and mostly missed"
    assert ("white", "joint", "touching_merged") not in found, "no nuclei touch there"
    over_all = found["mean over all", "joint", "dice"]
    assert over_all["mean"] == pytest.approx(0.775) and over_all["std_seeds"] == pytest.approx(
        np.std([0.7, 0.85], ddof=1)
    )
    assert "std_seeds" not in found["tnbc", "hv", "dice"], "one seed has no spread"
    assert ("mean over all", "hv", "dice") not in found, "it does not have all domains yet"
    text = left_out_markdown(rows)
    assert "| left out | variant | training groups | seeds | dice ↑ | aji ↑ | pq ↑ | touching_merged ↓ | palest" in text
    assert "| tnbc | joint | all | 2 | 0.700 ± 0.141 | 0.350 ± 0.071 | 0.250 ± 0.000 | 0.300 ± 0.141 | 0.625 ±" in text
    assert text.index("| tnbc | hv") < text.index("| white |") < text.index("| mean over all | joint |")
    assert summarise_left_out(Results([result("joint", 0, [1])])) == []


def test_a_variant_is_compared_on_each_domain_by_the_runs_that_left_it_out():
    runs = [without(d, v, 0, [x, x], 0, 0) for d in ("tnbc", "white") for v, x in (("joint", 0.5), ("hv", 0.75))]
    differences = {row["domain"]: row["difference"] for row in compare_pairs(Results(runs), ["dice"], Bootstrap())}
    assert differences == {"tnbc": 0.25, "white": 0.25}
    with pytest.raises(DataError, match="hv_without_tnbc_seed1: it lacks images of tnbc that joint_without_tnbc_seed0"):
        Results([*runs, without("tnbc", "hv", 1, [0.5], 0, 0)])


def test_an_experiment_that_leaves_out_domains_is_compared_from_its_store(tmp_path):
    uri, images = f"sqlite:///{tmp_path / 'mlruns.db'}", {"tnbc": IMAGES[:3], "white": IMAGES[:2]}
    children = [PlannedRun(v, "joint", seed, left_out=d) for seed in (0, 1) for d in images for v in ("joint", "ama")]
    fates = without("tnbc", "joint", 0, [0.5], 0.4, 0.5).fates
    run_experiment(uri, tmp_path, "unseen", children, images=images, score=score, fates=lambda settings: fates)
    store = ExperimentStore(uri, "ama_sam_experiments", None)
    Comparison(store, "testing", ["dice", "missed"], None, tmp_path, Bootstrap()).run()
    folder = tmp_path / "unseen" / "comparison_testing"
    with (folder / "left_out.csv").open(newline="") as file:
        rows = {(r["left_out"], r["variant"], r["metric"]): r for r in csv.DictReader(file)}
    row = rows["white", "ama", "dice"]
    assert float(row["mean"]) == pytest.approx(0.445) and row["seeds"] == "2"
    assert float(rows["mean over all", "joint", "touching_merged"]["mean"]) == pytest.approx(0.4)
    text = (folder / "comparison.md").read_text()
    assert text.index("| mean over all | ama |") < text.index("## tnbc, 3 images") < text.index("## white, 2 images")
    kept = {a.path for a in store.client.list_artifacts(store.find_parent().info.run_id, "comparison/testing")}
    assert "comparison/testing/left_out.csv" in kept


# --- pictures


def test_a_variant_far_off_is_told_at_the_border_and_does_not_flatten_the_others():
    means = {"ama": 0.80, "grl": 0.81, "signed": 0.79, "joint": 0.80, "single": 0.80, "unet": 0.60}
    results = Results(
        [result(name, seed, [mean, mean + 0.02 * seed]) for name, mean in means.items() for seed in (0, 1)]
    )
    axis = plot_scores(results, "tnbc", ["dice"]).axes[0]
    assert 0.7 < axis.get_xlim()[0] < 0.79
    assert [text.get_text() for text in axis.texts] == ["◂ 0.605"]
    assert [label.get_text() for label in axis.get_yticklabels()] == list(means)
    row = {"domain": "tnbc", "limit_groups": "all", "reference": "joint", "metric": "hd95_px"}
    pairs = {"ama": 1.0, "grl": -1.0, "signed": 0.0, "single": 0.5, "unet": 40.0}
    differences = [{**row, "variant": n, "difference": x, "low": x - 2, "high": x + 2} for n, x in pairs.items()]
    axis = plot_differences(differences, "tnbc", ["hd95_px"], 0.95).axes[0]
    assert axis.get_xlim()[1] < 10 and [text.get_text() for text in axis.texts] == ["40 ▸"]
    assert not plot_differences(differences[:4], "tnbc", ["hd95_px"], 0.95).axes[0].texts


def test_a_panel_has_rows_and_curves_only_of_variants_that_are_in_it():
    found = {"ama": ("1", "all"), "joint": ("1", "all"), "unet": ("all",)}
    results = Results([result(name, 0, [0.7, 0.8], groups) for name, numbers in found.items() for groups in numbers])
    few, all_of_them = plot_scores(results, "tnbc", ["dice"]).axes
    assert [label.get_text() for label in few.get_yticklabels()] == ["ama", "joint"]
    assert [label.get_text() for label in all_of_them.get_yticklabels()] == ["ama", "joint", "unet"]
    (axis,) = plot_low_data(results, "tnbc", ["dice"]).axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["ama", "joint"]
    assert plot_low_data(Results(results.results[-1:]), "tnbc", ["dice"]) is None


def test_a_metric_that_is_known_for_no_image_leaves_its_panel_empty():
    results = Results([result("ama", 0, [0.7, 0.8], groups) for groups in ("1", "all")])
    for one in results.results:
        one.rows[0]["hd95_um"], one.rows[1]["hd95_um"] = "", ""
    empty, drawn = plot_low_data(results, "tnbc", ["hd95_um", "dice"]).axes
    assert not empty.lines and drawn.lines


# --- stores


def run_experiment(uri, tmp_path, name, children, **evaluating):
    store = ExperimentStore(uri, "ama_sam_experiments", name)
    training = FakeVerb("training", fails={"signed_seed0"})
    domains = domains_named(*evaluating.get("images", ["tnbc"]))
    fake = FakeVerb("evaluating", **evaluating)
    Experiment(store, children, training, fake, "testing", domains, tmp_path / name).run()


def score(settings, image):
    """Harder images, a better ama, a little chance by seed, and less with less data."""
    name = settings["run_name"]
    easy = 0.4 + 0.04 * int(image.removeprefix("image"))
    return easy + 0.02 * ("ama" in name) + 0.01 * ("seed1" in name) - 0.1 * ("groups1" in name)


@pytest.mark.slow
def test_an_experiment_on_a_server_is_compared_from_the_server_alone(mlflow_server, bundle_root, tmp_path):
    children = [
        PlannedRun(mode, mode, seed, groups) for seed in (0, 1) for groups in (1, None) for mode in ("joint", "ama")
    ]
    images = {"tnbc": IMAGES[:8], "other": IMAGES[:3]}
    with pytest.raises(SystemExit, match="signed_seed0"):
        run_experiment(
            mlflow_server,
            tmp_path / "trained",
            "tnbc",
            [*children, PlannedRun("signed", "signed", 0)],
            images=images,
            score=score,
        )
    overrides = {"tracking_uri": mlflow_server, "metrics": ["dice", "hd95_px"], "run_id": "comparing"}
    open_verb(bundle_root, "experiment", None, output_dir=str(tmp_path / "out"), **overrides).run()

    folder = tmp_path / "out" / "tnbc" / "comparison_testing"
    with (folder / "scores.csv").open(newline="") as file:
        scores = {(r["domain"], r["limit_groups"], r["variant"], r["metric"]): r for r in csv.DictReader(file)}
    assert len(scores) == 2 * 2 * 2 * 2
    row = scores["tnbc", "1", "ama", "dice"]
    assert float(row["mean"]) == pytest.approx(0.4 + 0.04 * 3.5 + 0.02 + 0.005 - 0.1)
    assert float(row["std_seeds"]) == pytest.approx(0.01 / np.sqrt(2))
    with (folder / "differences.csv").open(newline="") as file:
        differences = list(csv.DictReader(file))
    assert [float(r["difference"]) for r in differences if r["metric"] == "dice"] == pytest.approx([0.02] * 4)
    text = (folder / "comparison.md").read_text()
    assert text.index("## tnbc, 8 images") < text.index("## other, 3 images"), "the primary first"
    assert "signed_seed0: training: it broke" in text
    for picture in ("scores.png", "differences.png", "low_data.png"):
        assert np.asarray(Image.open(folder / picture).convert("L")).std() > 5, "something is drawn"

    store = ExperimentStore(mlflow_server, "ama_sam_experiments", "tnbc")
    parent = store.find_parent()
    kept = {a.path for a in store.client.list_artifacts(parent.info.run_id, "comparison/testing")}
    assert {f"comparison/testing/{path.name}" for path in folder.glob("[!.]*")} == kept


@pytest.mark.slow
def test_what_cannot_be_compared_is_told(mlflow_server, bundle_root, tmp_path):
    def compare(**overrides):
        overrides = {"tracking_uri": mlflow_server, "metrics": "dice", "run_id": "comparing", **overrides}
        with pytest.raises(Exception) as told:  # noqa: B017 which class MONAI wraps it in does not matter
            open_verb(bundle_root, "experiment", None, output_dir=str(tmp_path), **overrides).run()
        assert isinstance(root_cause(told.value), DataError)
        return str(root_cause(told.value))

    with pytest.raises(SystemExit):
        run_experiment(mlflow_server, tmp_path, "failed", [PlannedRun("signed", "signed", 0)])
    run_experiment(mlflow_server, tmp_path, "unpaired", [PlannedRun("joint", "joint", 0)])
    run_experiment(mlflow_server, tmp_path, "unpaired", [PlannedRun("ama", "ama", 0)], images={"tnbc": ["a"]})
    assert "no experiment 'nowhere'" in compare(experiment_name="nowhere")
    assert "'nobody'" in (message := compare(name="nobody")) and "unpaired" in message, "those there are are named"
    assert "signed_seed0: training: it broke" in compare(name="failed")
    assert "none was started" in compare(name="failed", split="validation")
    assert "it lacks images of tnbc that joint_seed0" in compare(name="unpaired")
    assert "no such MLflow store" in compare(tracking_uri=f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()


def test_one_variant_alone_is_a_table_without_differences(tmp_path, capsys):
    uri = f"sqlite:///{tmp_path / 'mlruns.db'}"
    run_experiment(uri, tmp_path, "alone", [PlannedRun("joint", "joint", 0)], images={"tnbc": ["image3"]}, score=score)
    store = ExperimentStore(uri, "ama_sam_experiments", None)
    Comparison(store, "testing", ["dice"], None, tmp_path, Bootstrap()).run()
    folder = tmp_path / "alone" / "comparison_testing"
    assert {path.name for path in folder.glob("[!.]*")} == {
        "comparison.md", "scores.csv", "differences.csv", "scores.png",
    }  # fmt: skip
    assert (
        (folder / "differences.csv").read_text().startswith("domain,limit_groups,variant,reference,metric,difference")
    )
    assert "| joint | all | 0 | 0.520 |" in capsys.readouterr().out
    with pytest.raises(DataError, match="'other' was not evaluated. There are tnbc"):
        Comparison(store, "testing", ["dice"], "other", tmp_path, Bootstrap()).run()
    with pytest.raises(DataError, match="'ama' did not run. There are joint"):
        Comparison(store, "testing", ["dice"], None, tmp_path, Bootstrap(), reference="ama").run()
