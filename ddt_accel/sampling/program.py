"""A trajectory as data: what the loop does at every evaluation, in numbers only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import SplitConfig
from ddt_accel.sampling.integrators import Update, updates
from ddt_accel.schedule import Forecast, Schedule


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """What one guidance branch does at an evaluation: run the encoder, or forecast; both where a narrow encoder's state
    is corrected."""

    encode: bool
    forecast: Forecast  # ((k, 1.0),) for the state of k itself as it is; empty where there is nothing to read yet
    constant: NDArray[np.float32] | None  # c_k [M], added to the forecast
    width: float = 1.0  # of the encoder
    corrected: bool = False  # whether it encodes and the decoder works with a forecast all the same

    @property
    def held(self) -> int | None:
        """The refresh whose state is used as it is, if so."""
        (step, weight), *others = self.forecast
        return step if not others and weight == 1.0 and self.constant is None else None

    def does_as(self, other: Branch) -> bool:
        """Whether both can be done at once; equal constants are one array (`compile_program`)."""
        mine, others = (self.encode, self.width, self.forecast), (other.encode, other.width, other.forecast)
        return mine == others and self.constant is other.constant


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """One evaluation of the network; the unconditional branch is None where nothing reads it."""

    time: float
    guidance: float  # 1: the velocity is the conditional branch's
    conditional: Branch
    unconditional: Branch | None
    update: Update
    width: float = 1.0  # of the decoder

    @property
    def decode_both(self) -> bool:
        return self.guidance != 1.0

    @property
    def branches(self) -> tuple[Branch, ...]:
        return (self.conditional,) if self.unconditional is None else (self.conditional, self.unconditional)

    @property
    def corrected(self) -> bool:
        """Whether any branch's new state is corrected before it is used."""
        return any(branch.corrected for branch in self.branches)

    @property
    def encodes(self) -> bool:
        """Whether it is a refresh, of any branch."""
        return any(branch.encode for branch in self.branches)

    @property
    def held(self) -> int | None:
        """The refresh whose modulations are used where they are, by all branches."""
        held = {None if branch.encode else branch.held for branch in self.branches}
        return held.pop() if len(held) == 1 else None


@dataclass(frozen=True, kw_only=True)
class Program:
    """The evaluations of a trajectory."""

    evaluations: tuple[Evaluation, ...]

    @property
    def stochastic(self) -> bool:
        return any(evaluation.update.noise for evaluation in self.evaluations)


def null_label(config: SplitConfig) -> int:
    """The label of the unconditional branch; raises ConfigError where the network has no such branch."""
    if config.null_label is None:
        raise ConfigError(
            "The network was trained without a null label, so that nothing can guide it; give guidance 1 (--guidance "
            "1)."
        )
    return config.null_label


def compile_program(schedule: Schedule, *, encode_unconditional: str = "read") -> Program:
    """The program of a schedule.

    The unconditional branch is encoded only at refreshes that a guided evaluation reads, or with
    `encode_unconditional="always"` (calibration averages over both branches) at every one.
    """
    spec = schedule.spec
    guidance = spec.guidance_weights.tolist()
    every = range(spec.num_evaluations)
    conditional = [_branch(schedule, k) for k in every]
    unconditional = [_branch(schedule, k, beside=conditional[k]) for k in every]
    read = {r for k, branch in enumerate(unconditional) if guidance[k] != 1.0 for r, _ in branch.forecast}
    always = encode_unconditional == "always"
    rows = updates(spec)
    if schedule.integrator is not None:
        rows = tuple(Update(velocities=row) for row in schedule.integrator)
    return Program(
        evaluations=tuple(
            Evaluation(
                time=time,
                guidance=guidance[k],
                conditional=conditional[k],
                unconditional=branch if guidance[k] != 1.0 or (branch.encode and (always or k in read)) else None,
                update=update,
                width=schedule.decoder_widths.get(k, 1.0),
            )
            for k, (time, branch, update) in enumerate(
                zip(schedule.times or spec.times.tolist(), unconditional, rows, strict=True)
            )
        )
    )


def reweighted(schedule: Schedule, evaluation: Evaluation, k: int) -> Evaluation:
    """Evaluation k of a program with the forecasts that `schedule` has there, from the same states."""
    conditional = _branch(schedule, k)
    unconditional = None if evaluation.unconditional is None else _branch(schedule, k, beside=conditional)
    return replace(evaluation, conditional=conditional, unconditional=unconditional)


def _branch(schedule: Schedule, k: int, *, beside: Branch | None = None) -> Branch:
    """What the conditional branch does at evaluation k, or the unconditional one `beside` it."""
    row, means = schedule.forecast_at(k, unconditional=beside is not None), schedule.mean_modulations
    if beside is not None and schedule.guide_sha256 is not None:
        means = schedule.guide_mean_modulations
    elif beside is not None and beside.forecast == row:
        return beside
    narrow = k in schedule.encoder_widths
    corrected = narrow and k in schedule.forecasts
    encode = narrow or row == ((k, 1.0),)
    as_it_is = row == () or (encode and not corrected)
    return Branch(
        encode=encode,
        forecast=row,
        constant=None if means is None or as_it_is else _constant(schedule, means, k, row),
        width=schedule.encoder_widths.get(k, 1.0),
        corrected=corrected,
    )


def _constant(schedule: Schedule, means: NDArray[np.float32], k: int, row: Forecast) -> NDArray[np.float32]:
    """c_k = μ_k − Σ w μ_r: with it the forecast is of the deviation from the states of modulations μ [E, M] or [1, M].

    Of a narrow refresh μ_r is the narrow encoder's. Modulations are affine in the state, so that means and forecasts of
    states are means and forecasts of modulations.
    """
    constant: NDArray[np.float64]
    if len(means) == 1:
        constant = (1.0 - sum(w for _, w in row)) * means[0].astype(np.float64)
    else:
        narrow = schedule.narrow_mean_modulations
        of_refreshes = {} if narrow is None else dict(zip(schedule.encoder_widths, narrow, strict=True))
        drawn = sum(w * of_refreshes.get(r, means[r]).astype(np.float64) for r, w in row)
        constant = means[k].astype(np.float64) - drawn
    return constant.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a guidance branch takes for one image: runs of encoder and decoder by width, and states that forecasts
    read."""

    encoded_at: Counter[float]
    decoded_at: Counter[float]
    reads: int

    @property
    def encoded(self) -> int:
        """Runs of the encoder, at any width."""
        return self.encoded_at.total()

    @property
    def decoded(self) -> int:
        return self.decoded_at.total()

    def __add__(self, other: Work) -> Work:
        return Work(
            encoded_at=self.encoded_at + other.encoded_at,
            decoded_at=self.decoded_at + other.decoded_at,
            reads=self.reads + other.reads,
        )


def branch_work(program: Program, *, apart: bool = False) -> tuple[Work, Work]:
    """That of the conditional and of the unconditional branch; `apart`, where two networks run, neither copies a state
    that it holds because the other has a new one."""
    work = []
    for side in (0, 1):
        done = [(one, one.branches[side]) for one in program.evaluations if side < len(one.branches)]
        work.append(
            Work(
                encoded_at=Counter(branch.width for _, branch in done if branch.encode),
                decoded_at=Counter(one.width for one, _ in done if side == 0 or one.decode_both),
                reads=sum(
                    len(branch.forecast)
                    for one, branch in done
                    if branch.corrected or ((branch if apart else one).held is None and not branch.encode)
                ),
            )
        )
    return work[0], work[1]


def network_rows(program: Program) -> tuple[int, int]:
    """How many images go through the encoder and through the decoder, per image sampled."""
    work = branch_work(program)
    return sum(branch.encoded for branch in work), sum(branch.decoded for branch in work)
