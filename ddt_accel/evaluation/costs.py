"""What a trajectory costs, before it is run: from measured times of a backend, or from counted multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddt_accel.artifacts import read_json, write_json
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError
from ddt_accel.networks.config import UNKNOWN, SplitConfig
from ddt_accel.sampling.program import Program, Work, branch_work, compile_program
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec

if TYPE_CHECKING:
    from ddt_accel.evaluation.benchmark import Measurement
    from ddt_accel.sampling.backend import Backend

FORMAT, VERSION = "ddt-accel costs", 1
SECONDS, MULTIPLY_ADDS = "seconds", "multiply-adds"


@dataclass(frozen=True, kw_only=True)
class GuideCosts:
    """Those of a second network that guides, whose branch is the unconditional one."""

    encoder: float
    decoder: float
    forecast: float
    checkpoint_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class NarrowCosts:
    """Those of both networks at a width of their heads and channels."""

    width: float
    encoder: float
    decoder: float


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one image costs in one branch: a run of the encoder with its modulations, a run of the decoder, a state
    that a forecast reads; and what every evaluation costs besides, whatever the branches.

    With a `guide` the unconditional branch has costs of its own. `narrow` are those at nested widths, if there are any.
    """

    unit: str
    encoder: float
    decoder: float
    forecast: float
    evaluation: float
    conditions: str
    checkpoint_sha256: str | None = None
    guide: GuideCosts | None = None
    narrow: tuple[NarrowCosts, ...] = ()

    def __post_init__(self) -> None:
        every = (self, self.guide or self, *self.narrow)
        runs = [value for one in every for value in (one.encoder, one.decoder)]
        values = (self.evaluation, *(one.forecast for one in (self, self.guide or self)))
        if self.unit not in (SECONDS, MULTIPLY_ADDS) or min(runs) <= 0 or min(values) < 0:
            raise ConfigError(
                f"{self.encoder} {self.unit} for the encoder, {self.decoder} for the decoder, {self.forecast} for a "
                f"forecast and {self.evaluation} for the rest make no sense; run `ddt-accel bench` anew."
            )

    def of(self, schedule: Schedule, *, networks_alone: bool = False) -> float:
        """The cost of one image along a schedule; of its `networks_alone`, without forecasts and all else."""
        program = compile_program(schedule)
        parts = self.parts(program)
        if networks_alone:
            return sum(encoder + decoder for encoder, decoder, _ in parts)
        return sum(map(sum, parts)) + self.evaluation * len(program.evaluations)

    def parts(self, program: Program) -> list[tuple[float, float, float]]:
        """What an image takes in encoder, decoder and forecasts, network by network."""
        own, *others = works(program, self.guide is not None)
        encoder, decoder = (
            sum(getattr(self.at(width), kind) * runs for width, runs in made.items())
            for kind, made in (("encoder", own.encoded_at), ("decoder", own.decoded_at))
        )
        parts = [(encoder, decoder, self.forecast * own.reads)]
        if self.guide is not None:
            (work,), one = others, self.guide
            parts.append((one.encoder * work.encoded, one.decoder * work.decoded, one.forecast * work.reads))
        return parts

    def at(self, width: float) -> Costs | NarrowCosts:
        """Those of a width; raises MismatchError where nothing is known of it."""
        if width == 1.0:
            return self
        for one in self.narrow:
            if one.width == width:
                return one
        raise MismatchError(
            f"The schedule runs a network at width {width:g}, of which these costs ({self.conditions}) know nothing; "
            "run `ddt-accel bench` with the checkpoint that it is for."
        )

    def cover(self, widths: Collection[float]) -> bool:
        """Whether something is known of all these widths."""
        return set(widths) <= {1.0, *(one.width for one in self.narrow)}

    @property
    def relative(self) -> tuple[float, float]:
        """What a run of the encoder costs in either branch, in terms of the conditional one's."""
        return 1.0, 1.0 if self.guide is None else self.guide.encoder / self.encoder

    def is_of(self, checkpoint_sha256: str | None, guide_sha256: str | None) -> bool:
        """Whether these are of that checkpoint, guided by that one."""
        own = self.guide.checkpoint_sha256 if self.guide is not None else None
        guided = self.guide is not None, own
        return (self.checkpoint_sha256, guided) == (checkpoint_sha256, (guide_sha256 is not None, guide_sha256))

    def named(self, backend: Backend) -> Costs:
        """As those of the networks of a backend."""
        own = backend.guide.checkpoint_sha256 if backend.guide is not None else None
        guide = self.guide and replace(self.guide, checkpoint_sha256=own)
        return replace(self, checkpoint_sha256=backend.checkpoint_sha256, guide=guide)

    def with_narrow_of(self, other: Costs) -> Costs:
        """The same, narrow networks costing as much of the complete ones as `other` has it."""
        narrow = tuple(
            NarrowCosts(
                width=one.width,
                encoder=self.encoder * one.encoder / other.encoder,
                decoder=self.decoder * one.decoder / other.decoder,
            )
            for one in other.narrow
        )
        return replace(self, narrow=narrow)

    def document(self) -> dict[str, Any]:
        """What files say of it; nothing of a guide or widths where there are none, as in older ones."""
        told = asdict(self)
        return {name: value for name, value in told.items() if value or name not in ("guide", "narrow")}

    def save(self, path: Path) -> None:
        write_json(path, FORMAT, VERSION, self.document())

    @classmethod
    def load(cls, path: Path) -> Costs:
        content = read_json(path, FORMAT, VERSION)
        try:
            guide = content.pop("guide", None)
            narrow = tuple(NarrowCosts(**one) for one in content.pop("narrow", []))
            return cls(**content, guide=guide and GuideCosts(**guide), narrow=narrow)
        except (TypeError, ConfigError) as error:
            raise ArtifactError(f"{path} does not hold usable costs ({error}); run `ddt-accel bench` anew.") from None


def works(program: Program, guided: bool) -> list[Work]:
    """What each network does for an image: one for both branches, or with a second one that guides a branch each."""
    work = branch_work(program, apart=guided)
    return [*work] if guided else [work[0] + work[1]]


def forecast_reads(program: Program) -> int:
    """How many states forecasts read, per image, both branches counted."""
    return works(program, False)[0].reads


def kept_costs(
    path: Path,
    checkpoint_sha256: str,
    say: Callable[[str], None],
    *,
    guide_sha256: str | None = None,
    widths: Collection[float] = (1.0,),
) -> Costs | None:
    """The measured costs in `path`, if there are any of this checkpoint and guide at all of these widths."""
    if not path.exists():
        return None
    costs = Costs.load(path)
    if costs.is_of(checkpoint_sha256, guide_sha256) and costs.cover(widths):
        return costs
    other = "on another model or guide" if costs.cover(widths) else "without its narrow widths"
    say(f"{path} was measured {other} and is not used; multiply-adds are counted instead.")
    return None


def costs_here(path: Path, backend: Backend, latent_shape: tuple[int, int, int], say: Callable[[str], None]) -> Costs:
    """Those of the networks of a backend: as measured in `path`, else counted."""
    kept = kept_costs(
        path,
        backend.checkpoint_sha256 or UNKNOWN,
        say,
        guide_sha256=backend.guide.checkpoint_sha256 if backend.guide is not None else None,
        widths=backend.widths,
    )
    return kept or counted_of(backend, latent_shape)


def measured_costs(
    unshared: Measurement,
    spec: SamplingSpec,
    solved: Measurement,
    schedule: Schedule,
    conditions: str,
    counted: Costs,
) -> Costs:
    """Seconds, from the measurements of the unshared trajectory of `spec` and of `schedule` in one run.

    Where that one forecasts nothing, a forecast is taken to cost as much of an encoder run as by counting; so are
    narrow networks.
    """
    guided = counted.guide is not None
    full, shared = (works(compile_program(one), guided) for one in (Schedule.full(spec), schedule))
    spent, spent_sharing = unshared.parts(guided), solved.parts(guided)

    def parts(k: int, known: Costs | GuideCosts, unit: float) -> tuple[float, float, float]:
        """Of network k, whose runs that were not made take `unit` a multiply-add."""
        runs, reads = full[k], shared[k].reads
        encoder = spent[k][0] / runs.encoded if runs.encoded else unit * known.encoder
        decoder = spent[k][1] / runs.decoded if runs.decoded else unit * known.decoder
        return encoder, decoder, spent_sharing[k][2] / reads if reads else encoder * known.forecast / known.encoder

    encoder, decoder, forecast = parts(0, counted, 0.0)
    guide = None
    if counted.guide is not None:
        others = parts(1, counted.guide, encoder / counted.encoder)
        guide = GuideCosts(
            encoder=others[0], decoder=others[1], forecast=others[2], checkpoint_sha256=schedule.guide_sha256
        )
    return Costs(
        unit=SECONDS,
        encoder=encoder,
        decoder=decoder,
        forecast=forecast,
        evaluation=max(0.0, unshared.seconds - sum(map(sum, spent))) / unshared.num_evaluations,
        conditions=conditions,
        checkpoint_sha256=schedule.checkpoint_sha256,
        guide=guide,
    ).with_narrow_of(counted)


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
    reads = sum(work.reads for work in works(compile_program(schedule), counted.guide is not None))
    if reads == 0:
        return costs
    beyond, guide = (solved.seconds - costs.of(schedule)) / reads, costs.guide
    return replace(
        costs,
        forecast=max(0.0, costs.forecast + beyond),
        guide=guide and replace(guide, forecast=max(0.0, guide.forecast + beyond)),
    )


def added_up(name: str, schedule: Schedule, costs: Costs) -> Measurement:
    """What a schedule takes by the seconds of its parts, compared with nothing."""
    from ddt_accel.evaluation.benchmark import Measurement  # which needs PyTorch; costs are looked at without

    parts = costs.parts(compile_program(schedule))
    encoder, decoder, forecast = (sum(values) for values in zip(*parts, strict=True))
    guide = parts[1] if costs.guide is not None else (0.0, 0.0, 0.0)
    return Measurement(
        name=name,
        refresh_steps=schedule.refresh_steps,
        num_steps=schedule.spec.num_steps,
        num_evaluations=schedule.spec.num_evaluations,
        seconds=costs.of(schedule),
        encoder_seconds=encoder,
        decoder_seconds=decoder,
        forecast_seconds=forecast,
        guide_seconds=guide,
    )


def counted_costs(
    config: SplitConfig,
    latent_shape: tuple[int, int, int],
    *,
    guide: SplitConfig | None = None,
    widths: tuple[float, ...] = (1.0,),
) -> Costs:
    """Multiply-adds of the matrix products, with cached modulations; a forecast reads M values per token and state.

    The encoder's include the modulations. A second network, the `guide`, is counted by itself, and so is the network at
    each of its nested `widths`.
    """

    def parts(one: SplitConfig) -> tuple[float, float, float]:
        counted = one.multiply_adds(latent_shape)
        return (
            counted.encoder + counted.modulations,
            counted.decoder,
            float(one.num_tokens(latent_shape) * one.modulation_size),
        )

    encoder, decoder, forecast = parts(config)
    narrow = []
    if len(widths) > 1:
        from ddt_accel.networks.dynamic.widths import config_at  # which needs PyTorch; costs are looked at without

        narrow = [(width, *parts(config_at(config, width))[:2]) for width in widths if width != 1.0]
    others = parts(guide) if guide is not None else None
    guided = "" if guide is None else f", guided by {guide.description}"
    return Costs(
        unit=MULTIPLY_ADDS,
        encoder=encoder,
        decoder=decoder,
        forecast=forecast,
        evaluation=0.0,
        conditions=f"counted for {config.num_tokens(latent_shape)} tokens, {config.description}{guided}",
        guide=others and GuideCosts(encoder=others[0], decoder=others[1], forecast=others[2]),
        narrow=tuple(NarrowCosts(width=width, encoder=one, decoder=other) for width, one, other in narrow),
    )


def counted_of(backend: Backend, latent_shape: tuple[int, int, int]) -> Costs:
    """`counted_costs` of the networks of a backend."""
    guide = backend.guide.config if backend.guide else None
    return counted_costs(backend.config, latent_shape, guide=guide, widths=backend.widths)
