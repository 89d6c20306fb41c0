"""
Do the tests notice when a line of the arithmetic is wrong? Mutation testing of the modules that everything rests on.

    python -m pip install cosmic-ray
    python benchmarks/mutants.py [--modules slides/journal.py ...] [--each 16] [--seed 0]
    python benchmarks/mutants.py --each 0        # only the mutants that were once found by hand

Not speed. In a temporary copy of the repository one place after the other is changed (a comparison, an operation, a
number, a condition, ...; cosmic-ray has the operators), and the module's tests run. Prints what was killed, what ran
out of time, and the difference of every survivor: a gap of the tests, or a change that makes no difference.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# module -> its tests; all of them take seconds
MODULES = {
    "networks/domain_adversary.py": ["networks/test_domain_adversary.py"],
    "training/iteration.py": ["training/test_iteration.py"],
    "data/sampling.py": ["data/test_sampling.py"],
    "nuclei/metrics.py": ["nuclei/test_metrics.py"],
    "data/transforms.py": ["data/test_transforms.py"],
    "nuclei/instances.py": ["nuclei/test_instances.py"],
    "slides/ownership.py": ["slides/test_ownership.py"],
    "slides/journal.py": ["slides/test_journal.py"],
    "training/checkpoints.py": ["training/test_checkpoints.py"],
    "training/keeping.py": ["training/test_checkpoints.py"],
    "training/history.py": ["training/test_history.py"],
    "files.py": ["test_files.py"],
}
# libraries that take seconds to import are there before the tests begin; nothing of the repository may be among them
PRELOADED = "torch monai.engines monai.bundle monai.handlers mlflow skimage.measure skimage.segmentation scipy.ndimage"
PRELOADED += " pandas matplotlib.figure hypothesis shapely tifffile imagecodecs PIL.Image"


@dataclass(frozen=True)
class Mutant:
    """A module with one change: what it is called, and the module's text before and with it."""

    name: str
    before: str
    text: str


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--modules", nargs="+", choices=MODULES, default=list(MODULES))
    arguments.add_argument("--each", type=int, default=16, help="mutants drawn of each module")
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    for name in PRELOADED.split():
        __import__(name)
    table = []
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tracked(Path(folder) / "tree")
        for module in given.modules:
            counts = dict.fromkeys(("killed", "timeout", "survived"), 0)
            for mutant, outcome in judge(tree, module, given.each, given.seed):
                counts[outcome] += 1
                if outcome == "survived":
                    print(f"-- survived: {module}, {mutant.name}\n{difference(mutant)}", flush=True)
            table.append((module, *counts.values()))
            print(f"-- {module}: {counts}", flush=True)
    print("\n| module | killed | timeout | survived |\n|---|---|---|---|")
    for row in table:
        print("| " + " | ".join(map(str, row)) + " |")
    raise SystemExit(any(row[-1] for row in table))


def copy_tracked(tree: Path) -> Path:
    """The files of the repository that git knows, as they are now."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    return tree


def judge(tree: Path, module: str, each: int, seed: int) -> Iterator[tuple[Mutant, str]]:
    """The mutants of a module and what became of each."""
    path = tree / "bundle" / "scripts" / module
    whole = path.read_text()
    begun = time.monotonic()
    if tested(tree, MODULES[module], 600) != "survived":
        raise SystemExit(f"{module}: its tests fail without any change")
    limit = 10 + 4 * (time.monotonic() - begun)
    for mutant in [*found_by_hand(module, whole), *drawn(whole, each, random.Random(f"{seed} {module}"))]:
        path.write_text(mutant.text)
        try:
            yield mutant, tested(tree, MODULES[module], limit)
        finally:
            path.write_text(whole)


def tested(tree: Path, tests: list[str], limit: float) -> str:
    """Run tests in a process of their own, which has the libraries already."""
    child = os.fork()
    if child == 0:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        os.chdir(tree)
        sys.path[:] = [entry for entry in sys.path if entry != str(ROOT / "benchmarks")]
        import pytest

        os._exit(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *(f"tests/{name}" for name in tests)]))
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if status == 0 else "killed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def drawn(text: str, count: int, draw: random.Random) -> list[Mutant]:
    """So many places of a module, each changed in one of the ways there are for it."""
    if not count:
        return []
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code

    without_effect, places = _without_effect(text), {}
    for name in plugins.operator_names():
        operator = plugins.get_operator(name)
        if operator.arguments() or name == "core/ExceptionReplacer":  # that one fails at `except A as error`
            continue
        positions = [start for node in ast_nodes(get_ast(text)) for start, _ in operator().mutation_positions(node)]
        for occurrence, (line, column) in enumerate(positions):
            if not any(begin <= (line, column) < end for begin, end in without_effect):
                places.setdefault((line, column), []).append((name, occurrence))
    mutants = []
    for line, column in sorted(draw.sample(sorted(places), min(count, len(places)))):
        name, occurrence = draw.choice(places[line, column])
        changed = mutate_code(text, plugins.get_operator(name)(), occurrence)
        mutants.append(Mutant(f"line {line}: {name.partition('/')[2]}", text, changed))
    return mutants


def _without_effect(text: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """From where to where annotations reach, which are never evaluated."""
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(text)):
        found += [part for name in ("annotation", "returns") if (part := getattr(node, name, None))]
    return [((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)) for part in found]


def found_by_hand(module: str, text: str) -> list[Mutant]:
    """The mutants of ``FOUND`` for a module; each must still be possible."""
    mutants = []
    for name, (where, old, new) in FOUND.items():
        if where == module:
            if text.count(old) != 1:
                raise SystemExit(f"{module}: '{old}' is there {text.count(old)} times; renew '{name}' in FOUND")
            mutants.append(Mutant(name, text, text.replace(old, new)))
    return mutants


def difference(mutant: Mutant) -> str:
    lines = difflib.unified_diff(mutant.before.splitlines(), mutant.text.splitlines(), lineterm="", n=1)
    return "\n".join(list(lines)[2:])


# once survived all tests: name -> module, text there, what it is changed to
FOUND = {
    "auxiliary_weight on the primary": (
        "training/iteration.py", "torch.where(domain == 0, 1.0", "torch.where(domain < 0, 1.0",
    ),
    "the ramp one step late": (
        "training/iteration.py", "(state.iteration - 1) / max(", "max(0, state.iteration - 2) / max(",
    ),
    "a resumed run forgets its best score": (
        "training/keeping.py", "self.best, self.best_epoch = state[\"best\"], state[\"best_epoch\"]",
        "self.best_epoch = state[\"best_epoch\"]",
    ),
    "labels off by half a pixel": ("data/transforms.py", "(torch.arange(new) + 0.5)", "torch.arange(new)"),
    "sizes rounded down": ("data/transforms.py", "max(round(side * float(mpp)", "max(int(side * float(mpp)"),
    "history keeps rows behind a checkpoint": (
        "training/history.py", "read_history(path) if row[\"epoch\"] < epoch", "read_history(path)",
    ),
    "a journal's files are not cut": ("slides/journal.py", "    file.truncate(length)\n", ""),
    "a copy instead of a rename": (
        "files.py", "        os.replace(partial, path)\n    finally:\n        partial.unlink",
        "        shutil.copy(partial, path)\n    finally:\n        partial.unlink",
    ),
    "nuclei of whoever sees them first": (
        "slides/ownership.py", "if not (tile.owns(x, y) or self._should_be_earlier(tile, x, y)):", "if False:",
    ),
    "holes closed by corners alone leak": (
        "nuclei/instances.py", "connected_components(instances == 0, connectivity=1)",
        "connected_components(instances == 0, connectivity=2)",
    ),
}  # fmt: skip


if __name__ == "__main__":
    main()
