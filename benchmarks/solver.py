"""How long the exact programs take, on random costs and prices. Prints its conditions; writes JSON.

`states 1`: a step is served by the last refresh. `states 2`: by the last two, the program over pairs (γ = 2).

Usage: python benchmarks/solver.py [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddt_accel import solve_all_budgets
from ddt_accel.networks.device import processor
from ddt_accel.solver.pairs import solve_pairs

SINGLES = (50, 100, 250, 500, 1000)
PAIRS = ((50, 50), (100, 50), (250, 50))
REPEATS = 3


def least_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    out = parser.parse_args().out
    conditions = {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "figure": f"least of {REPEATS} repeats, in seconds",
    }
    print(*(f"{key}: {value}" for key, value in conditions.items()), sep="\n")
    rng = np.random.default_rng(0)
    rows = []
    print(f"\n{'states':>8} {'steps N':>8} {'budgets':>8} {'seconds':>9} {'peak MB':>8}")

    def report(states: int, n: int, budgets: int, call: Callable[[], object]) -> None:
        seconds = least_seconds(call)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append({"states": states, "steps": n, "budgets": budgets, "seconds": seconds, "peak_mb": peak})
        print(f"{states:>8} {n:>8} {'1 … ' + str(budgets):>8} {seconds:>9.4f} {peak:>8.0f}")

    for n in SINGLES:
        cost = rng.random((n, n))
        report(1, n, n, lambda cost=cost: solve_all_budgets(cost))
    for n, budget in PAIRS:
        price = rng.random((n, n, n))
        report(2, n, budget, lambda price=price, budget=budget: solve_pairs(price, budget))
    if out is not None:
        out.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
