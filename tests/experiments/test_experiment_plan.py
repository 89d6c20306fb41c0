"""What an experiment is made of: the plan of its children, the config's variants, and verbs as processes."""

from __future__ import annotations

import json
import sys

import pytest
from fakes import domains_named
from monai.bundle import ConfigParser
from scripts.errors import DataError
from scripts.experiments.plan import PlannedRun, plan_runs
from scripts.experiments.verbs import BundleVerb, VerbFailed
from scripts.networks.domain_adversary import MODES
from scripts.setup_run import unknown_keys

# --- the plan


def test_the_plan_is_every_variant_with_every_number_of_groups_and_seed():
    variants = [{"name": "joint", "mode": "joint"}, {"name": "mine", "mode": "ama", "training": {"lambda_max": 1}}]
    names = [child.name for child in plan_runs(variants, [0, 1], [1, None])]
    assert names == [
        "joint_groups1_seed0", "mine_groups1_seed0", "joint_seed0", "mine_seed0",
        "joint_groups1_seed1", "mine_groups1_seed1", "joint_seed1", "mine_seed1",
    ]  # fmt: skip
    assert plan_runs(variants, [0, 1], [1, None], only="all") == plan_runs(variants, [0, 1], [1, None])
    (child,) = plan_runs(variants, 3, only="mine")
    assert child.training == {"lambda_max": 1}
    assert child.tags == {"variant": "mine", "mode": "ama", "seed": "3", "limit_groups": "all"}


@pytest.mark.parametrize(
    "seeds, groups, expected",
    [(0, 1, [(0, 1)]), ("0,2", "all", [(0, None), (2, None)]), ((1, 1), [2, "null"], [(1, 2), (1, None)])],
)
def test_numbers_are_taken_as_the_command_line_gives_them(seeds, groups, expected):
    children = plan_runs([{"name": "a", "mode": "ama"}], seeds, groups)
    assert [(child.seed, child.limit_groups) for child in children] == expected


def test_each_domain_is_left_out_with_every_seed_and_variant():
    variants = [{"name": "joint", "mode": "joint"}, {"name": "ama", "mode": "ama"}]
    children = plan_runs(variants, [0, 1], 2, leave_out="all", domains=["tnbc", "mine"])
    assert [child.name for child in children[:4]] == [
        "joint_without_tnbc_groups2_seed0", "ama_without_tnbc_groups2_seed0",
        "joint_without_mine_groups2_seed0", "ama_without_mine_groups2_seed0",
    ]  # fmt: skip
    assert len(children) == 8 and children[2].tags["left_out"] == "mine"
    named = plan_runs(variants, 0, leave_out="mine,mine", domains=["tnbc", "mine"])
    assert [child.left_out for child in named] == ["mine", "mine"]


def test_without_a_domain_the_first_of_the_others_is_the_primary():
    domains = domains_named("tnbc", "mine", "white")

    def split(left_out):
        training, evaluated = PlannedRun("joint", "joint", 0, left_out=left_out).domains(domains)
        return [[(d["name"], d["role"]) for d in part] for part in (training, evaluated)]

    assert split("tnbc") == [[("mine", "primary"), ("white", "auxiliary")], [("tnbc", "primary")]]
    assert split("white") == [[("tnbc", "primary"), ("mine", "auxiliary")], [("white", "primary")]]
    assert PlannedRun("joint", "joint", 0).domains(domains) == (domains, domains)


@pytest.mark.parametrize(
    "variant, arguments, message",
    [
        ({"name": "a", "mode": "ama"}, {"only": "b"}, "no variant 'b'. There are a"),
        ({"name": "a"}, {}, "not a variant"),
        ({"name": "a", "mode": "ama", "lambda_max": 1}, {}, "not a variant"),
        ({"name": "a", "mode": "ama", "config": "nowhere.json"}, {}, "nowhere.json"),
        ({"name": "a", "mode": "ama", "config": "broken.yaml"}, {}, "broken.yaml: .*as YAML .line 2: expected"),
        ({"name": "a", "mode": "ama"}, {"seeds": "x"}, "seeds: 'x'"),
        ({"name": "a", "mode": "ama"}, {"seeds": []}, "seeds: it is empty"),
        ({"name": "a", "mode": "ama"}, {"limit_groups": 0}, "limit_groups: 0"),
        ({"name": "a", "mode": "ama"}, {"leave_out": "x", "domains": ["y", "z"]}, "no domain 'x'. There are y, z"),
        ({"name": "a", "mode": "ama"}, {"leave_out": "all", "domains": ["y"]}, "leave_out: .* it takes two"),
    ],
)
def test_plans_that_cannot_be_run_are_told(tmp_path, monkeypatch, variant, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("seed: [0\nmode: ama\n")
    with pytest.raises(DataError, match=message):
        plan_runs([variant], **{"seeds": 0, **arguments})


def test_the_variants_of_the_config_are_valid(bundle_root):
    parser = ConfigParser()
    parser.read_config(str(bundle_root / "configs" / "experiment.json"))
    parser["bundle_root"] = str(bundle_root)
    variants = parser.get_parsed_content("variants")
    children = plan_runs(variants, 0)
    assert {child.mode for child in children} == set(MODES), "every mode can be compared"
    assert {"unet", "quarter_resolution", "sam_decoder", "joint_stain_only"} <= {child.variant for child in children}
    assert plan_runs(variants, parser["seeds"], parser["limit_groups"], parser["only"])

    train = ConfigParser.load_config_file(bundle_root / "configs" / "train.json")
    for child in children:
        parser = ConfigParser(json.loads(json.dumps(train)))
        parser.update({**(ConfigParser.load_config_file(child.config) if child.config else {}), **child.training})
        assert unknown_keys(parser.get(), train) == []
        if child.variant == "joint_stain_only":
            kept = [type(step).__name__ for step in parser.get_parsed_content("train::augmentation").transforms]
            assert kept == ["RandCropAffined", "RandStaind"]


def test_every_key_of_the_config_is_used(bundle_root):
    parser = ConfigParser(ConfigParser.load_config_file(bundle_root / "configs" / "experiment.json"))
    parser.resolve_macro_and_relative_ids()
    assert unknown_keys(parser.get(), {}) == ["comparing", "experimenting", "imports", "initialize", "run"]


# --- processes


@pytest.mark.slow
def test_a_verb_runs_in_a_process_of_its_own_and_tells_why_it_failed(bundle_root, tmp_path):
    config, overlay = tmp_path / "verb.json", tmp_path / "overlay.json"
    write = "$pathlib.Path(@path).write_text(str([@common, @variant, @own]))"
    keys = {"common": 0, "variant": 0, "own": 0, "path": ""}
    setup = {"_target_": "scripts.setup_run.setup_run", "seed": 0, "defaults": str(config)}  # as every verb has it
    initialize = ["$import sys", f"$sys.path.append({str(bundle_root)!r})", setup]
    spoil = "$pathlib.Path(@path, 'x').write_text('below a file')"
    content = {"imports": ["$import pathlib"], **keys, "initialize": initialize, "greeting": [write, spoil]}
    config.write_text(json.dumps(content))
    overlay.write_text(json.dumps({"variant": 2, "own": 2}))
    folder, out = tmp_path / "it's a folder", tmp_path / "out.txt"
    verb = BundleVerb("greeting", str(config), {"common": 1}, {"path": str(out)})
    with pytest.raises(VerbFailed, match="^greeting: .*Not a directory.*out.txt/x"):
        verb.run(folder, {"own": 3}, str(overlay))
    assert out.read_text() == "[1, 2, 3]", "the verb's own config, then the one between, then the run's settings"
    assert "greeting" in (folder / "greeting.log").read_text()


def test_a_killed_process_is_told(tmp_path, monkeypatch):
    script = tmp_path / "killed"
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(VerbFailed, match="killed by signal 9 .out of memory"):
        BundleVerb("training", "train.json", {}).run(tmp_path, {})


def test_what_makes_a_run_is_its_settings_and_configs_but_not_places(tmp_path):
    config = tmp_path / "decoder.json"
    config.write_text("{}")
    here, there = (BundleVerb("training", "train.json", {"a": 1}, {"cache_dir": d}) for d in "xy")
    identity = here.identity({"b": (1, 2)}, str(config))
    assert identity == there.identity({"b": [1, 2]}, str(config)) != here.identity({"b": [1, 3]}, str(config))
    config.write_text('{"size": 1}')
    assert identity != here.identity({"b": [1, 2]}, str(config))
