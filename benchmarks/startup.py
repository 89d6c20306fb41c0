"""
Start-up: CPU seconds until a command has done its first visible thing, and as ratio to `import torch` alone.

    python benchmarks/startup.py [--repeat 5] [--packages 12]

Segmenting is measured until it opens its first image, and ended there. All in turns, each in its own process. The last
table says which packages the import of `ama-sam segment` spends its time in, by `python -X importtime`.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import BUNDLE, describe_machine, ratio

REPO = BUNDLE.parent
IMAGE = min((BUNDLE / "sample" / "sample_tnbc" / "images").iterdir())
_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)")
_BY_PART = {"torch", "scipy", "monai", "sklearn", "skimage", "scripts"}  # large ones, told apart at their second name

# ends the process when the image is opened
_UNTIL_IMAGE = f"""
import os, runpy, sys
def hook(event, arguments):
    if event == "open" and str(arguments[0]) == {str(IMAGE)!r}:
        os._exit(0)
sys.addaudithook(hook)
module = sys.argv.pop(1)
sys.argv[0] = module
runpy.run_module(module, run_name="__main__")
os._exit(9)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--packages", type=int, default=12, help="rows of the last table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out")
        segment = ["segment", str(IMAGE), "-o", out, "--mpp", "0.25"]
        verb = ["run", "inferring", "--config_file", str(BUNDLE / "configs" / "inference.json")]
        verb += ["--bundle_root", str(BUNDLE), "--dataset_dir", str(IMAGE), "--output_dir", out, "--mpp", "0.25"]
        commands = {
            "import torch": (["-c", "import torch"], 0),
            "ama-sam --help": (["-m", "ama_sam.cli", "--help"], 0),
            "ama-sam segment --help": (["-m", "ama_sam.cli", "segment", "--help"], 0),
            "a wrong option": (["-m", "ama_sam.cli", *segment, "--treshold", "3"], 1),
            "ama-sam segment, first image": (["-c", _UNTIL_IMAGE, "ama_sam.cli", *segment], 0),
            "monai.bundle run inferring, first image": (["-c", _UNTIL_IMAGE, "monai.bundle", *verb], 0),
            "load()": (["-c", "import os; from ama_sam import load; load(); os._exit(0)"], 0),
        }
        seconds = collections.defaultdict(list)
        for _ in range(args.repeat):
            for name, (command, code) in commands.items():
                seconds[name].append(cpu_seconds(command, code, folder))
        print(describe_machine())
        print(f"{'':42}{'CPU s':>8}{'least':>8}{'ratio':>8}")
        for name, each in seconds.items():
            row = f"{statistics.median(each):8.2f}{min(each):8.2f}{ratio(each, seconds['import torch']):8.2f}"
            print(f"{name:42}{row}")
        print_packages(["-X", "importtime", "-m", "ama_sam.cli", *segment], folder, args.packages)


def cpu_seconds(command: list[str], code: int, folder: str) -> float:
    """User and system time of a Python process, which has to end with this exit code."""
    process = subprocess.Popen([sys.executable, *command], **_quiet(folder), stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != code:
        raise SystemExit(f"{command[-6:]} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def print_packages(command: list[str], folder: str, count: int) -> None:
    """Seconds that importing took, by package, of the modules' own times."""
    done = subprocess.run([sys.executable, *command], **_quiet(folder), stderr=subprocess.PIPE, text=True)
    total, modules = collections.Counter(), collections.Counter()
    for microseconds, name in _LINE.findall(done.stderr):
        parts = name.split(".")
        package = ".".join(parts[: 2 if parts[0] in _BY_PART else 1])
        total[package] += int(microseconds) / 1e6
        modules[package] += 1
    print(f"\n{'imported by ama-sam segment':42}{'s':>8}{'modules':>9}")
    print(f"{'all':42}{sum(total.values()):8.2f}{sum(modules.values()):9}")
    for package, seconds in total.most_common(count):
        print(f"{package:42}{seconds:8.2f}{modules[package]:9}")


def _quiet(folder: str) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return {"cwd": folder, "env": environment, "stdout": subprocess.DEVNULL}


if __name__ == "__main__":
    main()
