"""Options that say how to sample, and what stands where they say nothing: a published configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddt_accel.cli.console import say

if TYPE_CHECKING:
    from ddt_accel.networks.recipe import Recipe
    from ddt_accel.networks.split import SplitNetwork
    from ddt_accel.spec import SamplingSpec

LikeOption = Annotated[
    Path | None,
    typer.Option(
        "--like",
        help="Published YAML that says how to sample; options beside it win. Default: as published for a known "
        "repository.",
    ),
]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Sampling steps; 50 where nothing else says.")]
SolverOption = Annotated[
    str | None, typer.Option("--solver", help="euler, heun, sde, ab1, ab2, ab3 or ab4; euler where nothing else says.")
]
GuidanceOption = Annotated[
    float | None, typer.Option("--guidance", help="Guidance weight; 1 is none. 2 where nothing else says.")
]
IntervalOption = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--guidance-interval", help="Guidance applies strictly between these times; 0.3 and 1 where nothing else says."
    ),
]
ClosedOption = Annotated[
    bool | None, typer.Option("--closed-interval/--open-interval", help="Whether it applies at these times, too.")
]
ShiftOption = Annotated[float | None, typer.Option("--timeshift", help="Time shift of the grid; 1 is none.")]
LastStepOption = Annotated[
    float | None, typer.Option("--last-step", help="Length of the last step; 1 / steps by default.")
]
EndOption = Annotated[
    float | None,
    typer.Option("--end", help="Where the grid ends before the shift, and trajectories with it; 1 by default."),
]


def sampling_said(**settings: Any) -> dict[str, Any]:
    """The settings that were given; raises ConfigError for those that cannot be."""
    from ddt_accel.spec import SamplingSpec

    said = {name: value for name, value in settings.items() if value is not None}
    SamplingSpec.chosen({}, said)
    return said


def recipe_like(path: Path | None, said: dict[str, Any], *, guided: bool = False) -> Recipe | None:
    """The recipe of a YAML, before anything else is done; raises ConfigError where what is `said` does not go with
    it. `guided` is whether a second network is given."""
    from ddt_accel.networks.recipes import read_recipe

    if path is None:
        return None
    recipe = read_recipe(path)
    _tell(f"Sampling as in {path}", recipe, recipe.spec(said), guided)
    return recipe


def sampling_of(
    network: SplitNetwork, like: Recipe | None, said: dict[str, Any], *, guided: bool = False
) -> SamplingSpec:
    """What is `said`, the rest like a recipe, as published for the network, or by default."""
    from ddt_accel.networks.recipes import published_recipe
    from ddt_accel.spec import SamplingSpec

    if like is not None:
        return like.spec(said)
    name = network.source.name if network.source else ""
    if (recipe := published_recipe(name)) is None:
        return SamplingSpec.chosen({}, said)
    spec = recipe.spec(said)
    _tell(f"Sampling as published for {name}", recipe, spec, guided)
    return spec


def _tell(origin: str, recipe: Recipe, spec: SamplingSpec, guided: bool) -> None:
    from ddt_accel.cli.holdings import recipe as in_words

    say(f"{origin}, but for other options: {in_words(spec)}.")
    if recipe.guide is not None and spec.guidance != 1 and not guided:
        say(f"There a second network guides, {recipe.guide}: give it as --guide CHECKPOINT, or the null label guides.")
