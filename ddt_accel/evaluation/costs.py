"""What a trajectory costs, before it is run: from measured times of a backend, or from counted multiply-adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddt_accel.artifacts import read_json, write_json
from ddt_accel.errors import ArtifactError, ConfigError
from ddt_accel.networks.config import SplitConfig
from ddt_accel.sampling.program import Program, compile_program, network_rows
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec

if TYPE_CHECKING:
    from ddt_accel.evaluation.benchmark import Measurement

FORMAT, VERSION = "ddt-accel costs", 1
SECONDS, MULTIPLY_ADDS = "seconds", "multiply-adds"


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one image costs in one branch: a run of the encoder with its modulations, a run of the decoder, a state
    that a forecast reads; and what every evaluation costs besides, whatever the branches."""

    unit: str
    encoder: float
    decoder: float
    forecast: float
    evaluation: float
    conditions: str
    checkpoint_sha256: str | None = None

    def __post_init__(self) -> None:
        values = (self.encoder, self.decoder, self.forecast, self.evaluation)
        if self.unit not in (SECONDS, MULTIPLY_ADDS) or min(self.encoder, self.decoder) <= 0 or min(values) < 0:
            raise ConfigError(
                f"{self.encoder} {self.unit} for the encoder, {self.decoder} for the decoder, {self.forecast} for a "
                f"forecast and {self.evaluation} for the rest make no sense; run `ddt-accel bench` anew."
            )

    def of(self, schedule: Schedule) -> float:
        """The cost of one image along a schedule."""
        program = compile_program(schedule)
        encoded, decoded = network_rows(program)
        return (
            self.encoder * encoded
            + self.decoder * decoded
            + self.forecast * forecast_reads(program)
            + self.evaluation * len(program.evaluations)
        )

    def save(self, path: Path) -> None:
        write_json(path, FORMAT, VERSION, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Costs:
        content = read_json(path, FORMAT, VERSION)
        try:
            return cls(**content)
        except (TypeError, ConfigError) as error:
            raise ArtifactError(f"{path} does not hold usable costs ({error}); run `ddt-accel bench` anew.") from None


def forecast_reads(program: Program) -> int:
    """How many states forecasts read, per image, both branches counted."""
    return sum(
        len(branch.forecast)
        for evaluation in program.evaluations
        if evaluation.held is None
        for branch in evaluation.branches
        if not branch.encode
    )


def kept_costs(path: Path, checkpoint_sha256: str, say: Callable[[str], None]) -> Costs | None:
    """The measured costs in `path`, if there are any of this checkpoint."""
    if not path.exists():
        return None
    costs = Costs.load(path)
    if costs.checkpoint_sha256 == checkpoint_sha256:
        return costs
    say(f"{path} was measured on another model and is not used; multiply-adds are counted instead.")
    return None


def measured_costs(
    unshared: Measurement,
    spec: SamplingSpec,
    solved: Measurement,
    schedule: Schedule,
    conditions: str,
    counted: Costs,
) -> Costs:
    """Seconds, from the measurements of the unshared trajectory of `spec` and of `schedule` in one run.

    Where that one forecasts nothing, a forecast is taken to cost as much of an encoder run as by counting.
    """
    encoded, decoded = network_rows(compile_program(Schedule.full(spec)))
    reads = forecast_reads(compile_program(schedule))
    parts = unshared.encoder_seconds + unshared.decoder_seconds + unshared.forecast_seconds
    return Costs(
        unit=SECONDS,
        encoder=unshared.encoder_seconds / encoded,
        decoder=unshared.decoder_seconds / decoded,
        forecast=solved.forecast_seconds / reads
        if reads
        else unshared.encoder_seconds / encoded * counted.forecast / counted.encoder,
        evaluation=max(0.0, unshared.seconds - parts) / unshared.num_evaluations,
        conditions=conditions,
        checkpoint_sha256=schedule.checkpoint_sha256,
    )


def implied_costs(
    unshared: Measurement,
    spec: SamplingSpec,
    solved: Measurement,
    schedule: Schedule,
    conditions: str,
    counted: Costs,
) -> Costs:
    """Seconds by which both whole trajectories cost what they took.

    What `schedule` took beyond its parts is laid on its forecasts, which the unshared trajectory has none of. Without
    any it remains a difference.
    """
    costs = measured_costs(unshared, spec, solved, schedule, conditions, counted)
    reads = forecast_reads(compile_program(schedule))
    if reads == 0:
        return costs
    return replace(costs, forecast=max(0.0, costs.forecast + (solved.seconds - costs.of(schedule)) / reads))


def added_up(name: str, schedule: Schedule, costs: Costs) -> Measurement:
    """What a schedule takes by the seconds of its parts, compared with nothing."""
    from ddt_accel.evaluation.benchmark import Measurement  # which needs PyTorch; costs are looked at without

    program = compile_program(schedule)
    encoded, decoded = network_rows(program)
    return Measurement(
        name=name,
        refresh_steps=schedule.refresh_steps,
        num_steps=schedule.spec.num_steps,
        num_evaluations=schedule.spec.num_evaluations,
        seconds=costs.of(schedule),
        encoder_seconds=costs.encoder * encoded,
        decoder_seconds=costs.decoder * decoded,
        forecast_seconds=costs.forecast * forecast_reads(program),
    )


def counted_costs(config: SplitConfig, latent_shape: tuple[int, int, int]) -> Costs:
    """Multiply-adds of the matrix products, with cached modulations; a forecast reads M values per token and state.

    The encoder's include the modulations.
    """
    tokens, counted = config.num_tokens(latent_shape), config.multiply_adds(latent_shape)
    return Costs(
        unit=MULTIPLY_ADDS,
        encoder=counted.encoder + counted.modulations,
        decoder=counted.decoder,
        forecast=tokens * config.modulation_size,
        evaluation=0.0,
        conditions=f"counted for {tokens} tokens, {config.description}",
        checkpoint_sha256=None,
    )
