"""How PixNerd is sampled as published: by DDT's samplers, of the same code base.

https://github.com/MCG-NJU/PixNerd, configs_c2i/pix256std1_repa_pixnerd_xl.yaml; the checkpoint for 512 px has no YAML.
"""

from __future__ import annotations

from ddt_accel.networks.ddt.recipe import SAMPLER_AT as SAMPLER_AT
from ddt_accel.networks.ddt.recipe import recipe_in as recipe_in
from ddt_accel.networks.recipe import PublishedRecipe, Recipe

PUBLISHED: tuple[PublishedRecipe, ...] = (
    PublishedRecipe(
        repository="MCG-NJU/PixNerd-XL-P16-C2I",
        path="*",
        recipe=Recipe(settings={"num_steps": 100, "guidance": 3.5, "guidance_interval": (0.1, 1.0)}),
    ),
)
