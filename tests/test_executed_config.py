"""What `scripts.executed_config` needs of MONAI, in every version in range."""

from __future__ import annotations

import json

from monai.bundle import ConfigParser, ConfigWorkflow
from scripts.executed_config import executed_config, executing_parser, executing_verb, set_value

CONFIG = {
    "width": 1,
    "area": "$@width ** 2",
    "seen": {"_target_": "scripts.executed_config.executed_config"},
    "run": ["$@area"],
}


def test_a_component_finds_the_config_it_is_part_of_and_its_overrides():
    parser = ConfigParser({**CONFIG, "width": 7})
    assert parser.get_parsed_content("seen") == {**CONFIG, "width": 7}


def test_an_expression_finds_it_too():
    parser = ConfigParser({"width": 7, "seen": "$f()", "imports": []}, globals={"f": executing_parser})
    assert parser.get_parsed_content("seen") is parser


def test_outside_of_a_config_there_is_none():
    assert executing_parser() is None and executed_config() is None


def test_a_value_set_while_the_config_is_executed_is_what_follows():
    parser = ConfigParser(dict(CONFIG))
    assert parser.get_parsed_content("area") == 1
    parser.parse()
    parser.ref_resolver.remove_resolved_content("area")
    set_value(parser, "width", 3)
    assert parser.get_parsed_content("area", lazy=True) == 9 and parser["width"] == 3


def test_a_config_run_by_a_config_finds_itself():
    found = []

    def run_inner():
        found.append(executed_config()["name"])
        parser = ConfigParser({"name": "inner", "seen": "$f()"}, globals={"f": lambda: executed_config()["name"]})
        found.append(parser.get_parsed_content("seen"))

    ConfigParser({"name": "outer", "x": "$f()"}, globals={"f": run_inner}).get_parsed_content("x")
    assert found == ["outer", "inner"]


def test_what_will_be_run_is_known_while_a_workflow_is_initialised(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "initialize": ["$f()"], "other": "$f()"}))
    found = []

    def look():
        found.append(executing_verb())
        ConfigParser({"x": "$f()"}, globals={"f": lambda: found.append(executing_verb())}).get_parsed_content("x")

    workflow = ConfigWorkflow(str(tmp_path / "config.json"), logging_file=False, meta_file=None, run_id="area")
    workflow.parser.globals["f"] = look
    workflow.initialize()
    look()
    assert found == ["area", None, None, None]
