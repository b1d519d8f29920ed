"""The neural solver: times and an integrator that were searched once, for any velocity network (arXiv 2505.21114).

Searched in N steps for rectified flows on the path of this project, so as to end where 100 Euler steps do. Step lengths
Δ_i and a matrix M lower triangular, whose rows add up to one, make

    t_{i+1} = t_i + Δ_i,    x_{i+1} = x_i + Δ_i Σ_{j ≤ i} M_ij v_j,    v_j the guided velocity at t_j.

Two tables were published: searched on FlowDCN-B/2 (5 to 10 and 15 steps) and on SiT-XL/2 (5 to 10). A row below is Δ_i,
then M_ij of j < i. Numbers of github.com/MCG-NJU/NeuralSolver, commit 7188794 (ns_sampling.py in
src/diffusion/flow_matching, and t2i_vis/flux.ipynb); MIT licence, copyright (c) 2024 wang shuai. Nothing is shared.

Adapted: lengths, whose four decimals add up to 0.9999 to 1.0002, are scaled to end where the sampler does, and a last
step that it asks for is not taken. A schedule guides at the evaluations where its recipe does on a grid of its own:
that grid has the time shift for which as many evaluations as can be are guided as the interval says of the published
times, and of such shifts the one whose times are nearest to them. Where the interval ends before the data one
evaluation may be left that is guided otherwise.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddt_accel.errors import ConfigError
from ddt_accel.rivals.rival import Variant
from ddt_accel.schedule import Row, Schedule
from ddt_accel.solver.solve import Statistics
from ddt_accel.spec import SamplingSpec

Table = dict[int, tuple[tuple[float, ...], ...]]

# fmt: off
FLOWDCN: Table = {
    5: (
        (0.0521,),
        (0.1475, -1.26),
        (0.2114, 1.38, -2.26),
        (0.2797, 0.0, 0.0, -0.92),
        (0.3092, 0.0, 0.0, 0.0, -0.7),
    ),
    6: (
        (0.0391,),
        (0.0924, -1.22),
        (0.165, 1.12, -2.0),
        (0.2015, -0.3, 0.9, -1.56),
        (0.2511, 0.0, 0.0, 0.0, -0.74),
        (0.2511, 0.0, 0.0, 0.0, 0.0, -0.62),
    ),
    7: (
        (0.0387,),
        (0.0748, -1.11),
        (0.103, 1.03, -1.99),
        (0.1537, 0.07, 0.43, -1.57),
        (0.184, -0.21, -0.15, 1.53, -2.29),
        (0.234, -0.05, 0.07, -0.23, 0.61, -1.33),
        (0.2117, -0.17, 0.31, -0.41, 0.17, 0.59, -1.31),
    ),
    8: (
        (0.0071,),
        (0.0613, -2.43),
        (0.078, 0.61, -1.55),
        (0.1163, 0.99, -0.11, -2.07),
        (0.1421, 0.05, -0.49, 1.33, -1.93),
        (0.188, 0.05, -0.33, 0.23, 0.73, -1.71),
        (0.2077, -0.09, 0.25, -0.29, 0.05, 0.61, -1.45),
        (0.1996, -0.23, 0.21, -0.01, -0.25, 0.25, 0.41, -1.25),
    ),
    9: (
        (0.0017,),
        (0.051, -6.19),
        (0.0636, -0.11, -0.81),
        (0.0911, 0.73, -0.17, -1.37),
        (0.1007, 0.31, -0.05, 0.19, -1.45),
        (0.1443, 0.03, -0.23, 0.29, 0.35, -1.35),
        (0.1694, -0.19, 0.05, 0.01, 0.21, 0.25, -1.23),
        (0.191, -0.23, 0.21, -0.13, 0.17, 0.09, 0.09, -1.09),
        (0.1872, -0.17, 0.15, 0.11, -0.19, 0.03, 0.23, 0.17, -1.21),
    ),
    10: (
        (0.0016,),
        (0.0538, -7.8801),
        (0.0347, -0.4, -0.74),
        (0.0853, 0.48, -0.18, -0.86),
        (0.0853, 0.26, -0.04, -0.04, -1.28),
        (0.1198, 0.0, -0.06, 0.26, 0.26, -1.42),
        (0.1351, -0.1, -0.06, 0.08, 0.2, 0.22, -1.24),
        (0.165, -0.18, 0.14, -0.08, 0.1, 0.08, 0.14, -1.06),
        (0.1788, -0.12, 0.16, -0.1, 0.04, 0.08, 0.06, 0.08, -1.02),
        (0.1406, -0.16, 0.02, 0.14, 0.0, -0.14, 0.08, 0.14, 0.34, -1.38),
    ),
    15: (
        (0.0005,),
        (0.0301, -8.2001),
        (0.0414, -1.48, 0.76),
        (0.0198, 0.3, 0.16, -1.54),
        (0.0496, 0.28, 0.04, -0.38, -0.34),
        (0.0202, -0.02, 0.02, -0.02, -0.06, -0.62),
        (0.0683, -0.08, 0.04, 0.1, -0.02, -0.24, -0.62),
        (0.0496, -0.04, 0.14, 0.08, 0.06, -0.08, -0.14, -0.8),
        (0.071, -0.12, 0.06, 0.0, 0.12, 0.08, -0.02, -0.12, -0.66),
        (0.0817, -0.08, 0.02, 0.0, 0.04, 0.08, 0.12, -0.04, -0.06, -0.7),
        (0.0817, -0.18, 0.06, 0.06, -0.02, 0.02, -0.02, 0.04, 0.02, 0.0, -0.7),
        (0.0998, -0.12, 0.1, 0.0, 0.0, -0.04, -0.04, 0.0, 0.06, 0.02, -0.1, -0.4),
        (0.1171, -0.1, 0.06, 0.02, 0.0, 0.02, -0.02, -0.02, 0.0, 0.06, -0.06, -0.12, -0.44),
        (0.1081, -0.06, 0.06, 0.02, -0.02, 0.0, 0.0, 0.0, -0.02, 0.0, 0.06, -0.08, -0.12, -0.48),
        (0.1613, -0.12, 0.0, 0.02, 0.04, 0.04, 0.04, 0.02, 0.02, -0.02, 0.0, -0.02, 0.14, -0.04, -1.28),
    ),
}
SIT: Table = {
    5: (
        (0.0424,),
        (0.1225, -1.17),
        (0.2144, 1.07, -1.83),
        (0.3073, 0.0, 0.0, -0.93),
        (0.3135, 0.0, 0.0, 0.0, -0.71),
    ),
    6: (
        (0.0389,),
        (0.0976, -1.04),
        (0.161, 1.62, -2.98),
        (0.2046, -1.32, 2.52, -2.04),
        (0.2762, 0.0, 0.0, 0.0, -0.76),
        (0.2217, 0.0, 0.0, 0.0, 0.0, -0.66),
    ),
    7: (
        (0.0299,),
        (0.0735, -0.93),
        (0.1119, 1.23, -2.31),
        (0.1451, -0.59, 1.53, -2.09),
        (0.1959, -0.09, -0.07, 0.99, -1.91),
        (0.2698, 0.05, -0.21, 0.09, 0.55, -1.47),
        (0.1738, -0.05, 0.19, -0.31, 0.37, 0.67, -1.79),
    ),
    8: (
        (0.0303,),
        (0.0702, -0.92),
        (0.0716, 0.78, -1.7),
        (0.1112, 0.06, 0.52, -1.76),
        (0.1501, -0.02, -0.16, 0.98, -1.8),
        (0.1833, -0.02, -0.12, 0.22, 0.24, -1.36),
        (0.2475, -0.1, 0.06, -0.02, 0.18, 0.12, -1.1),
        (0.1358, -0.16, 0.14, -0.02, -0.02, 0.38, 0.32, -1.72),
    ),
    9: (
        (0.028,),
        (0.0624, -0.93),
        (0.0717, 0.63, -1.29),
        (0.0894, 0.39, -0.11, -1.41),
        (0.1092, -0.07, -0.05, 0.83, -1.59),
        (0.1307, 0.07, -0.11, 0.27, 0.27, -1.53),
        (0.1729, -0.05, 0.03, 0.01, 0.15, 0.17, -1.15),
        (0.2198, -0.21, 0.27, -0.07, -0.03, 0.19, 0.09, -0.99),
        (0.1159, -0.15, 0.15, 0.03, -0.09, 0.25, 0.25, 0.21, -1.71),
    ),
    10: (
        (0.0279,),
        (0.0479, -0.95),
        (0.0646, 0.59, -1.17),
        (0.0659, 0.35, -0.11, -1.45),
        (0.1045, -0.13, 0.01, 0.75, -1.49),
        (0.1066, 0.05, -0.05, 0.31, 0.29, -1.59),
        (0.1355, 0.05, -0.03, -0.09, 0.23, 0.17, -1.19),
        (0.1622, -0.03, 0.07, -0.09, -0.03, 0.27, -0.03, -0.91),
        (0.1942, -0.15, 0.17, 0.03, -0.09, 0.05, 0.09, 0.05, -0.79),
        (0.0908, -0.17, 0.11, 0.15, 0.03, 0.05, 0.25, 0.05, -0.07, -1.49),
    ),
}
# fmt: on
TABLES = {"FlowDCN-B/2": FLOWDCN, "SiT-XL/2": SIT}  # by the networks that they were searched on

SHIFTS = np.round(np.geomspace(0.1, 10, 201), 3).tolist()


def variants(statistics: Statistics) -> list[Variant]:
    """None for a stochastic sampler, which leads elsewhere."""
    if statistics.spec.solver == "sde":
        return []
    return [
        Variant(settings=f"searched on {name}", of=partial(_largest, statistics.spec, table))
        for name, table in TABLES.items()
    ]


def _largest(spec: SamplingSpec, table: Table, runs: int) -> Schedule | None:
    steps = max((steps for steps in table if steps <= runs), default=None)
    return None if steps is None else solver(spec, table, steps)


def solver(spec: SamplingSpec, table: Table, steps: int) -> Schedule:
    """The published solver of so many steps, to the end of a sampler and guided as it is."""
    lengths = np.array([row[0] for row in table[steps]])
    lengths *= spec.end_time / lengths.sum()
    times = np.append(0.0, np.cumsum(lengths)[:-1])
    return Schedule(
        spec=_grid(spec, times),
        refresh_steps=tuple(range(steps)),
        times=tuple(times.tolist()),
        integrator=tuple(_row(length, row[1:]) for length, row in zip(lengths.tolist(), table[steps], strict=True)),
        objective="published",
    )


def _row(length: float, before: tuple[float, ...]) -> Row:
    """An integrator's row of Δ_i and M_ij, j < i."""
    shares = (*before, 1.0 - sum(before))
    return tuple((j, length * share) for j, share in enumerate(shares) if share != 0.0)


def _grid(spec: SamplingSpec, times: NDArray[np.float64]) -> SamplingSpec:
    """The recipe whose evaluations are guided as those at `times` should be."""
    low, high = spec.guidance_interval
    inside = (low <= times) & (times <= high) if spec.closed_interval else (low < times) & (times < high)

    def misses(grid: SamplingSpec) -> tuple[int, float]:
        guided = grid.guidance_weights != 1.0
        return int((guided != inside).sum()), float(np.abs(grid.times - times).sum())

    grids = []
    for shift in SHIFTS:
        try:
            grids.append(spec.on_grid(len(times), timeshift=shift, solver="euler"))
        except ConfigError:  # its end or its last step does not fit such a shift
            continue
    if not grids:
        raise ConfigError(f"{len(times)} published times fit no grid of this sampling; give another last step.")
    return min(grids, key=misses)
