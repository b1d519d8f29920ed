"""A trajectory as data: what the loop does at every evaluation, in numbers only."""

from __future__ import annotations

from dataclasses import dataclass

from ddt_accel.sampling.integrators import Update, updates
from ddt_accel.schedule import Schedule

# A forecast m_k = Σ weight · m_r: pairs (refresh r ≤ k, weight). Holding the last state is ((r, 1.0),).
Forecast = tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of the network."""

    time: float
    guidance: float  # 1: the unconditional branch is not needed
    forecast: Forecast  # ((k, 1.0),) at refresh k itself
    encode_both: bool  # at a refresh: encode the unconditional branch too
    update: Update

    @property
    def decode_both(self) -> bool:
        return self.guidance != 1.0


@dataclass(frozen=True, kw_only=True)
class Program:
    """The evaluations of a trajectory, and which of them refresh the state."""

    evaluations: tuple[Evaluation, ...]
    refresh_steps: frozenset[int]

    @property
    def stochastic(self) -> bool:
        return any(evaluation.update.noise for evaluation in self.evaluations)


def compile_program(
    schedule: Schedule, *, forecasts: dict[int, Forecast] | None = None, encode_unconditional: str = "read"
) -> Program:
    """The program of a schedule.

    Between refreshes the last state is held; `forecasts` overrides that for the evaluations it names. The
    unconditional branch is encoded only at refreshes that a guided evaluation reads, or with
    `encode_unconditional="always"` (calibration averages over both branches) at every one.
    """
    spec = schedule.spec
    guidance = spec.guidance_weights.tolist()
    refreshes = set(schedule.refresh_steps)
    rows: list[Forecast] = []
    last = 0
    for k in range(spec.num_evaluations):
        last = k if k in refreshes else last
        rows.append((forecasts or {}).get(k, ((last, 1.0),)))
    read = {r for k, row in enumerate(rows) if guidance[k] != 1.0 for r, _ in row}
    return Program(
        evaluations=tuple(
            Evaluation(
                time=time,
                guidance=guidance[k],
                forecast=rows[k],
                encode_both=encode_unconditional == "always" or k in read,
                update=update,
            )
            for k, (time, update) in enumerate(zip(spec.times.tolist(), updates(spec), strict=True))
        ),
        refresh_steps=frozenset(refreshes),
    )
