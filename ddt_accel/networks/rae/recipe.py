"""How RAE's DiT-DH is sampled as published: `sampler`, `guidance` and `misc` of its YAMLs.

https://github.com/bytetriper/RAE, src/sample_ddp.py and configs/stage2/sampling. Its time runs the other way, so that
its interval [t_min, t_max] is [1 − t_max, 1 − t_min] here; it counts points of the grid, which are one more than steps.
"""

from __future__ import annotations

import math
from typing import Any

from ddt_accel.errors import ConfigError
from ddt_accel.networks.recipe import PublishedRecipe, Recipe, real_at, steps_at, value_at
from ddt_accel.networks.yaml_files import Document

SAMPLER_AT = "sampler"
END = 0.999  # the published 1 − 1/1000: nothing leads on from there
BASE = 4096
# Names that torchdiffeq gives fixed steps.
_SOLVERS = {"euler": "euler", "heun2": "heun"}


def recipe_in(document: Document) -> Recipe | None:
    if value_at(document, SAMPLER_AT) is None:
        return None
    for place, default, wanted in (
        ("sampler.mode", "ODE", ("ODE",)),
        ("sampler.params.reverse", False, (False,)),
        ("sampler.params.sampling_method", "dopri5", tuple(_SOLVERS)),
        ("transport.params.path_type", "Linear", ("Linear",)),
        ("transport.params.prediction", "velocity", ("velocity",)),
        ("guidance.method", "cfg", ("cfg", "autoguidance")),
    ):
        if (value := value_at(document, place, default)) not in wanted:
            raise ConfigError(f"Its {place} is {value!r}; {' or '.join(map(str, wanted))} can be run here.")
    if not isinstance(guidance := value_at(document, "guidance", {}), dict):
        raise ConfigError(f"Its guidance is {guidance!r}; method, scale, t-min and t-max are expected under it.")
    scale = real_at(document, "guidance.scale", 1.0)
    guided = scale > 1  # as published, smaller ones are none
    second = guided and value_at(document, "guidance.method") == "autoguidance"
    settings: dict[str, Any] = {
        "num_steps": steps_at(document, "sampler.params.num_steps", 50, least=2) - 1,
        "solver": _SOLVERS[value_at(document, "sampler.params.sampling_method")],
        "guidance": scale if guided else 1.0,
        "guidance_interval": (_turned(_bound(document, "max", 1.0)), _turned(_bound(document, "min", 0.0))),
        "closed_interval": True,
        "timeshift": _shift(document),
        "end": END,
    }
    guide = value_at(document, "guidance.guidance_model.ckpt") if second else None
    return Recipe(settings=settings, guide=str(guide) if guide is not None else None)


def _bound(document: Document, end: str, default: float) -> float:
    """Published configurations write t-min, the code t_min, which counts where both are there."""
    return real_at(document, f"guidance.t_{end}", real_at(document, f"guidance.t-{end}", default))


def _turned(time: float) -> float:
    return float(f"{1 - time:.12g}")


def _shift(document: Document) -> float:
    size = value_at(document, "misc.latent_size")
    if size is None:
        side = real_at(document, "stage_2.params.input_size", 16)
        size = [real_at(document, "stage_2.params.in_channels", 768), side, side]
    try:
        values = math.prod(float(part) for part in size)
    except (TypeError, ValueError):
        raise ConfigError(f"Its misc.latent_size is {size!r}; three numbers are expected.") from None
    dim = real_at(document, "misc.time_dist_shift_dim", values)
    base = real_at(document, "misc.time_dist_shift_base", BASE)
    if not dim > 0 < base:
        raise ConfigError(f"Its misc.time_dist_shift_dim and _base are {dim:g} and {base:g}; both must be above 0.")
    return math.sqrt(dim / base)


_REPOSITORY, _FOLDER = "nyu-visionx/RAE-collections", "DiTs/Dinov2/wReg_base"


def _published(path: str, side: int, guidance: float = 1.0, guide: str | None = None) -> PublishedRecipe:
    settings = {
        "num_steps": 49, "guidance": guidance, "guidance_interval": (0.0, 1.0), "closed_interval": True, "end": END,
        "timeshift": math.sqrt(768 * side**2 / BASE),
    }  # fmt: skip
    named = guide and f"{_REPOSITORY}:{_FOLDER}/{guide}/stage2_model.pt"
    return PublishedRecipe(
        repository=_REPOSITORY, path=f"{_FOLDER}/{path}*", recipe=Recipe(settings=settings, guide=named)
    )


PUBLISHED: tuple[PublishedRecipe, ...] = (
    _published("ImageNet256/DiTDH-", 16),
    _published("ImageNet512/DiTDH-XL", 32, 1.5, "ImageNet512/DiTDH-S_ep20"),
    _published("ImageNet512/DiTDH-", 32),
)
