"""The tables of `ddt-accel compare` in the documentation, from its compare.json files.

Usage: python benchmarks/compared.py NAME=compare.json [NAME=compare.json …]
Each is kept as benchmarks/results/compare-NAME.json, and docs/results/compared.md has its tables between
`<!-- measured: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ddt_accel.artifacts import read_json
from ddt_accel.evaluation.fidelity import interval
from ddt_accel.report.comparison import told
from ddt_accel.report.numbers import COMPARISON_FORMAT, COMPARISON_VERSION

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "compared.md"
OURS = ("ours, solved", "ours, aligned", "ours, in closed form", "ours, fitted")


def main() -> None:
    text = PAGE.read_text()
    for argument in sys.argv[1:]:
        name, _, path = argument.partition("=")
        facts = read_json(Path(path), COMPARISON_FORMAT, COMPARISON_VERSION)
        kept = ROOT / "benchmarks" / "results" / f"compare-{name}.json"
        if Path(path).resolve() != kept:
            shutil.copyfile(path, kept)
        block = re.compile(rf"(<!-- measured: {re.escape(name)} -->\n)(?:.*?\n)??(<!-- end -->)", re.DOTALL)
        if not block.search(text):
            sys.exit(f"{PAGE} has no place for {name}.")
        filled = "\n".join(tables(facts))
        text = block.sub(lambda found, filled=filled: f"{found[1]}{filled}\n{found[2]}", text)
        print(f"{name}: {json.dumps(facts['conditions'], indent=1)}\n\n{filled}\n")
    PAGE.write_text(text)


def tables(facts: dict[str, Any]) -> list[str]:
    """Conditions, and a table over the costs: the mean of every method, and its distance from the best of ours."""
    contests, aim = facts["contests"], f"to_{facts['aim']}_db"
    names = dict.fromkeys(row["name"] for contest in contests for row in contest["rows"])
    by_cost = [{row["name"]: row for row in contest["rows"]} for contest in contests]
    means = {name: [np.mean(rows[name][aim]) if name in rows else -np.inf for rows in by_cost] for name in names}
    order = sorted(names, key=lambda name: -float(np.mean([max(0.0, mean) for mean in means[name]])))
    said = facts["conditions"]
    lines = [
        f"{facts['num_images']} images of seed {facts['seed']}; {said['backend']}, {said['machine']}.",
        "",
        "| dB, at cost | " + " | ".join(f"{contest['cost']:.3g}" for contest in contests) + " |",
        "|---|" + "---|" * len(contests),
    ]
    for name in order:
        shown = [told(interval(rows[name][aim])) if name in rows else "–" for rows in by_cost]
        bold = f"**{name}**" if name in OURS else name
        lines.append(f"| {bold} | " + " | ".join(shown) + " |")
    return lines


if __name__ == "__main__":
    main()
