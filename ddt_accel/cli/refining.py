"""What `solve` does with the networks themselves: refreshes are moved, forecasts aligned, where that ends closer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ddt_accel.cli.console import stages
from ddt_accel.cli.console import steps as steps_bar

if TYPE_CHECKING:
    from ddt_accel.evaluation.refine import Refined
    from ddt_accel.fitting.aligned import Aligned
    from ddt_accel.schedule import Schedule
    from ddt_accel.solver.solve import Method, Statistics
    from ddt_accel.workspace import Workspace

# Of the noise that is worked on, and of that which decides whether what came of it is kept.
SEEDS = (1 << 20, (1 << 20) + 1)
BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Improved:
    """A schedule, what was done to it in words, and the same for `--json`."""

    schedule: Schedule
    told: str
    facts: dict[str, Any]


def improve(
    place: Workspace, statistics: Statistics, schedule: Schedule, method: Method, images: int, *, refining: bool,
    aligning: bool,
) -> Improved:  # fmt: skip
    """The schedule refined, then aligned, where that is asked for."""
    from ddt_accel.backends.guided import backend_of
    from ddt_accel.errors import ConfigError
    from ddt_accel.evaluation.refine import ROUNDS, TRIED, refine
    from ddt_accel.fitting.aligned import aligned
    from ddt_accel.sampling.noise import ImageRange

    network, guide = place.load_networks({})
    if network.source is None or network.source.latent_shape is None:
        raise ConfigError("The model does not say which latents it is for; calibrate with --latent-shape C,H,W.")
    if images < 2:
        raise ConfigError(f"--refine-images is {images}; schedules are compared over images: give at least 2.")
    backend, shape = backend_of(network, guide if schedule.guide_sha256 else None), network.source.latent_shape
    working, judging = (ImageRange(seed=seed, first=0, stop=images) for seed in SEEDS)
    told, facts = [], {}
    if refining:
        with steps_bar("refining", ROUNDS * TRIED) as bar:
            refined = refine(
                backend, statistics, schedule, method, latent_shape=shape, images=working, held_out=judging,
                batch_size=BATCH_SIZE, on_run=bar.advance,
            )  # fmt: skip
        told.append(_refined_told(schedule, refined))
        facts["refined"] = {
            "refresh_steps": list(refined.schedule.refresh_steps),
            "schedules_run": refined.runs,
            "gain_db": refined.gain and asdict(refined.gain),
            "held_out_gain_db": refined.held_out_gain and asdict(refined.held_out_gain),
        }
        schedule = refined.schedule
    if aligning:
        with stages() as on_stage:
            done = on_stage("aligning forecasts", 1)
            found = aligned(backend, schedule, shape, working, judging, BATCH_SIZE)
            done()
        told.append(_aligned_told(schedule, found))
        facts["aligned"] = {"held_out_gain_db": found.gain and asdict(found.gain), "error": found.error}
        schedule = found.schedule
    return Improved(schedule=schedule, told="\n".join(told), facts=facts)


def _refined_told(schedule: Schedule, refined: Refined) -> str:
    """What refinement brought, in words."""
    tried = f"Refinement ran {refined.runs} schedules"
    gain = refined.held_out_gain
    if gain is None:
        return f"{tried}; none ends significantly closer."
    interval = f"{gain.mean:+.2f} dB ({gain.low:+.2f} … {gain.high:+.2f}) on held-out images"
    if refined.schedule.refresh_steps == schedule.refresh_steps:
        return f"{tried}; the best makes no significant difference: {interval}. The solved schedule stays."
    return f"{tried} and moved the refreshes to {', '.join(map(str, refined.schedule.refresh_steps))}: {interval}."


def _aligned_told(schedule: Schedule, found: Aligned) -> str:
    """What alignment brought, in words."""
    if not schedule.shares:
        return "Nothing is shared, so that there is nothing to align."
    if not schedule.forecasts and not schedule.unconditional_forecasts:
        return "States are held: there are no weights to align; solve with --forecast calibrated."
    if found.gain is None:
        return "Alignment has nothing to gain: the pictures are those of the unshared sampler."
    gain = f"{found.gain.mean:+.2f} dB ({found.gain.low:+.2f} … {found.gain.high:+.2f}) on held-out images"
    if found.gain.low > 0:
        return f"Alignment of the forecasts brings {gain}."
    if found.gain.high < 0:
        return f"Alignment of the forecasts loses: {gain}. The weights stay."
    return f"Alignment of the forecasts makes no significant difference: {gain}. The weights stay."
