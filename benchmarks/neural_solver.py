"""Writes the published neural solver as shipped schedules, `neural-solver-5` and so on.

Its numbers stand in `ddt_accel/rivals/neural_solver.py`; the table is the one that was searched on FlowDCN-B/2.

They name no checkpoint: they are for any velocity network of this path. Guidance is that of DDT's published sampling.

Usage: python benchmarks/neural_solver.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ddt_accel import SamplingSpec
from ddt_accel.rivals.neural_solver import FLOWDCN, solver
from ddt_accel.schedule import SHIPPED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    folder = parser.parse_args().out
    for steps in FLOWDCN:
        path = folder / f"neural-solver-{steps}.json"
        solver(SamplingSpec(guidance=2.0, guidance_interval=(0.3, 1.0)), FLOWDCN, steps).save(path)
        print(path)


if __name__ == "__main__":
    main()
