"""How DDT is sampled as published: `model.diffusion_sampler` of its YAMLs, and what the released ones say.

https://github.com/MCG-NJU/DDT, src/diffusion/stateful_flow_matching/{sampling,adam_sampling}.py
"""

from __future__ import annotations

from typing import Any

from ddt_accel.errors import ConfigError
from ddt_accel.networks.recipe import PublishedRecipe, Recipe, class_at, real_at, steps_at, value_at
from ddt_accel.networks.yaml_files import Document

SAMPLER_AT = "model.diffusion_sampler"
_ARGUMENTS = f"{SAMPLER_AT}.init_args"
# What solves the same equation; the other step functions leave the noise out, or halve it.
_STEPS = {"": "euler", "ode_step_fn": "euler", "sde_step_fn": "sde"}
_ORDERS = range(1, 5)


def recipe_in(document: Document) -> Recipe | None:
    if value_at(document, SAMPLER_AT) is None:
        return None
    if (guided := class_at(document, f"{_ARGUMENTS}.guidance_fn")) not in ("", "simple_guidance_fn"):
        raise ConfigError(
            f"Its {_ARGUMENTS}.guidance_fn is {guided}, which guides some channels only; simple_guidance_fn is what "
            "can be run here."
        )
    solver = _solver(document)
    interval = tuple(
        real_at(document, f"{_ARGUMENTS}.guidance_interval_{end}", default) for end, default in (("min", 0), ("max", 1))
    )
    last_step = f"{_ARGUMENTS}.last_step"
    settings: dict[str, Any] = {
        "num_steps": steps_at(document, f"{_ARGUMENTS}.num_steps", 250, least=1),
        "solver": solver,
        "guidance": real_at(document, f"{_ARGUMENTS}.guidance", 1.0),
        # The published Heun sampler knows of no interval: it guides everywhere, t = 0 included.
        "guidance_interval": (0.0, 1.0) if solver == "heun" else interval,
        "closed_interval": solver == "heun",
        "timeshift": real_at(document, f"{_ARGUMENTS}.timeshift", 1.0),
        "last_step": None if value_at(document, last_step) is None else real_at(document, last_step),
    }
    return Recipe(settings=settings)


def _solver(document: Document) -> str:
    named = class_at(document, f"{SAMPLER_AT}.class_path")
    step = class_at(document, f"{_ARGUMENTS}.step_fn")
    if named == "EulerSampler" and step in _STEPS:
        return _STEPS[step]
    if named == "HeunSampler" and step in ("", "ode_step_fn"):
        if value_at(document, f"{_ARGUMENTS}.exact_henu") is True:
            return "heun"
        raise ConfigError(
            f"Its {SAMPLER_AT} is a HeunSampler that takes velocities of the step before (exact_henu: false), which is "
            "no solver here; set exact_henu: true, or give a --solver without --like."
        )
    if named == "AdamLMSampler" and step in ("", "ode_step_fn"):
        order = steps_at(document, f"{_ARGUMENTS}.order", 2, least=1)
        if order in _ORDERS:
            return f"ab{order}"
        raise ConfigError(f"Its {_ARGUMENTS}.order is {order}; orders 1 to {_ORDERS[-1]} can be run here.")
    told = f"{named or 'none'}{f' by {step}' if step else ''}"
    raise ConfigError(
        f"Its {SAMPLER_AT} is {told}; EulerSampler by ode_step_fn or sde_step_fn, HeunSampler and AdamLMSampler can be "
        "run here."
    )


def _published(repository: str, guidance: float) -> PublishedRecipe:
    settings = {"num_steps": 250, "guidance": guidance, "guidance_interval": (0.3, 1.0), "last_step": 0.04}
    return PublishedRecipe(repository=repository, path="*", recipe=Recipe(settings=settings))


PUBLISHED: tuple[PublishedRecipe, ...] = (
    _published("MCG-NJU/DDT-XL-22en6de-R256", 2.0),
    _published("MCG-NJU/DDT-XL-22en6de-R512", 3.0),
)
