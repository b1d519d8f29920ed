"""How long the exact program takes for all budgets at once, on random costs. Prints its conditions; writes JSON.

Usage: python benchmarks/solver.py [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np

from ddt_accel import solve_all_budgets
from ddt_accel.report.study import processor

SIZES = (50, 100, 250, 500, 1000)
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    out = parser.parse_args().out
    conditions = {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "repeats": REPEATS,
        "figure": "least of the repeats, in seconds",
    }
    print(*(f"{key}: {value}" for key, value in conditions.items()), sep="\n")
    rng = np.random.default_rng(0)
    rows = []
    print(f"\n{'steps N':>8} {'budgets':>8} {'seconds':>9}")
    for n in SIZES:
        cost = rng.random((n, n))
        times = []
        for _ in range(REPEATS if n < 1000 else 1):
            started = time.perf_counter()
            solve_all_budgets(cost)
            times.append(time.perf_counter() - started)
        rows.append({"steps": n, "budgets": n, "seconds": min(times)})
        print(f"{n:>8} {n:>8} {min(times):>9.4f}")
    if out is not None:
        out.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
