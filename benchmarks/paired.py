"""
What a change brought, image by image: two models for each seed, evaluated on the same images.

    python benchmarks/paired.py --before A0/metrics.csv A1/metrics.csv --after B0/metrics.csv B1/metrics.csv
        [--domain mine]

The files are of ``evaluating``, one for each seed, in the same order. Prints the means of each seed, and the mean
difference over seeds with its bootstrap interval over images, as ``comparing`` does for the runs of an experiment.
"""

from __future__ import annotations

import argparse

import machine  # noqa: F401 # puts the bundle on the path
import pandas as pd
from scripts.experiments.bootstrap import Bootstrap


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--before", nargs="+", required=True)
    arguments.add_argument("--after", nargs="+", required=True)
    arguments.add_argument("--domain", help="the rows of this domain alone")
    arguments.add_argument("--metrics", nargs="+", default=["dice", "aji", "pq"])
    args = arguments.parse_args()
    tables = [[rows(file, args.domain) for file in files] for files in (args.before, args.after)]
    for metric in args.metrics:
        before, after = (pd.DataFrame({seed: t[metric] for seed, t in enumerate(part)}) for part in tables)
        if not before.axes[0].equals(after.axes[0]) or before.shape != after.shape:
            raise SystemExit("the files do not hold the same images, for as many seeds")
        difference = (after - before).mean(axis=1).dropna()  # such as the merged share where no nuclei touch
        low, high = Bootstrap().interval(difference.to_numpy())
        for name, values in (("before", before), ("after", after)):
            print(f"{metric:16}{name:12}" + "".join(f"{value:8.3f}" for value in values.mean()))
        better = f"{(difference > 0).sum()} of {len(difference)} images higher"
        print(f"{metric:16}{'difference':12}{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}], {better}")


def rows(file: str, domain: str | None) -> pd.DataFrame:
    table = pd.read_csv(file, index_col="file")
    if domain is None:
        return table
    if domain not in set(table["domain"]):
        raise SystemExit(f"{file}: it has no row of the domain '{domain}'")
    return table[table["domain"] == domain]


if __name__ == "__main__":
    main()
