from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.config_files import check_config
from scripts.errors import DataError

__all__ = ["ALL_GROUPS", "LEFT_OUT", "PlannedRun", "plan_runs"]

# how "no limit" is written in tags, names and tables
ALL_GROUPS = "all"
# tag of children that are evaluated on a domain they were not trained on
LEFT_OUT = "left_out"
_VARIANT_KEYS = {"name", "mode", "config", "training", "evaluating"}


@dataclass(frozen=True)
class PlannedRun:
    """
    One training and its evaluation.

    Args:
        variant: name of the variant.
        mode: training mode, see ``scripts.networks.domain_adversary.MODES``.
        seed: of the training.
        limit_groups: number of the primary's training groups, None for all.
        left_out: domain that it is not trained on and is evaluated on; None trains and evaluates on all.
        config: config file that both verbs take besides their own, e.g. of another decoder.
        training, evaluating: further settings of the two verbs.
    """

    variant: str
    mode: str
    seed: int
    limit_groups: int | None = None
    left_out: str | None = None
    config: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    evaluating: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the run and of its folder, e.g. ``ama_groups2_seed0`` or ``ama_without_tnbc_seed0``."""
        without = "" if self.left_out is None else f"_without_{self.left_out}"
        groups = "" if self.limit_groups is None else f"_groups{self.limit_groups}"
        return f"{self.variant}{without}{groups}_seed{self.seed}"

    @property
    def tags(self) -> dict[str, str]:
        """What the child is, for MLflow's table; with the evaluated split it tells children apart."""
        groups = ALL_GROUPS if self.limit_groups is None else str(self.limit_groups)
        left_out = {} if self.left_out is None else {LEFT_OUT: self.left_out}
        return {"variant": self.variant, "mode": self.mode, "seed": str(self.seed), "limit_groups": groups, **left_out}

    def domains(self, domains: Sequence[dict]) -> tuple[list[dict], list[dict]]:
        """
        The domain lists that it is trained and evaluated on; labels that no training reads measure how good it got.

        Without the domain left out, the first of the others is the primary; the one left out is evaluated alone.
        """
        evaluated = [{key: value for key, value in domain.items() if key != "labels"} for domain in domains]
        if self.left_out is None:
            return list(domains), evaluated
        others = [domain for domain in domains if domain["name"] != self.left_out]
        roles = ["primary", *["auxiliary"] * (len(others) - 1)]
        alone = [{**domain, "role": "primary"} for domain in evaluated if domain["name"] == self.left_out]
        return [{**domain, "role": role} for domain, role in zip(others, roles)], alone


def plan_runs(
    variants: Sequence[Mapping[str, Any]],
    seeds: int | str | Iterable,
    limit_groups: int | str | Iterable | None = None,
    only: str | Iterable[str] | None = None,
    leave_out: str | Iterable[str] | None = None,
    domains: Sequence[str] = (),
) -> list[PlannedRun]:
    """
    Every chosen variant with every domain to leave out, every number of groups and every seed; the seeds outermost, so
    that what is there after an interruption can be compared.

    Args:
        variants: ``{"name", "mode"}``, and perhaps ``config``, ``training``, ``evaluating`` (see ``PlannedRun``).
        seeds: whole numbers, as a list, a comma-separated string or a single one.
        limit_groups: the same, where None or "all" is no limit.
        only: names of the variants to run; None or "all" runs all.
        leave_out: names of domains, each of which is left out once; "all" for each of ``domains``, None for no such.
        domains: names of the domains.

    Raises:
        DataError: for a variant or domain that is not there or not valid, a config file that is none, or numbers that
            are none.
    """
    by_name: dict[str, Mapping[str, Any]] = {}
    for variant in variants:
        name = str(variant.get("name", ""))
        if not name or "mode" not in variant or set(variant) - _VARIANT_KEYS:
            raise DataError(
                "variants", f"{dict(variant)} is not a variant", "Give name and mode; else config, training, evaluating"
            )
        if name in by_name:
            raise DataError("variants", f"'{name}' is there twice", "Give every variant a name of its own")
        config = variant.get("config")
        if config is not None:
            check_config(config)
        by_name[name] = variant
    chosen = list(by_name) if only in (None, "all") else [str(name) for name in _listed(only)]
    for name in chosen:
        if name not in by_name:
            raise DataError("only", f"there is no variant '{name}'", f"There are {', '.join(by_name)}")
    return [
        PlannedRun(
            variant=name,
            mode=str(by_name[name]["mode"]),
            seed=seed,
            limit_groups=groups,
            left_out=left_out,
            config=None if by_name[name].get("config") is None else str(Path(by_name[name]["config"])),
            training=by_name[name].get("training", {}),
            evaluating=by_name[name].get("evaluating", {}),
        )
        for seed in _numbers("seeds", seeds, least=0)
        for left_out in _left_out(leave_out, domains)
        for groups in _numbers("limit_groups", limit_groups, least=1, none_is_all=True)
        for name in dict.fromkeys(chosen)
    ]


def _left_out(names: str | Iterable[str] | None, domains: Sequence[str]) -> list[str | None]:
    """Domains to leave out in turn; [None] to leave out none."""
    if names is None:
        return [None]
    chosen = list(domains) if names == "all" else list(dict.fromkeys(_listed(names)))
    there = f"There are {', '.join(domains)}"
    for name in chosen:
        if name not in domains:
            raise DataError("leave_out", f"there is no domain '{name}'", there)
    if not chosen or len(domains) < 2:
        raise DataError("leave_out", "one domain is left out and another one trained on: it takes two", there)
    return chosen


def _listed(values: Any) -> list:
    """A list from a list, a comma-separated string or a single value."""
    if isinstance(values, str):
        return [value.strip() for value in values.split(",")]
    return list(values) if isinstance(values, Iterable) else [values]


def _numbers(key: str, values: Any, least: int, none_is_all: bool = False) -> list[int | None]:
    numbers: list[int | None] = []
    for value in _listed(values):
        if none_is_all and (value is None or str(value).lower() in (ALL_GROUPS, "null", "none")):
            numbers.append(None)
            continue
        try:
            number = int(str(value))
        except ValueError:
            number = least - 1
        if number < least:
            raise DataError(key, f"{value!r} is not a whole number from {least}", f"Give such as --{key} 1,2")
        numbers.append(number)
    if not numbers:
        raise DataError(key, "it is empty", f"Give such as --{key} 1,2")
    return list(dict.fromkeys(numbers))
