"""RAE's published files: https://github.com/bytetriper/RAE."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import SplitConfig
from ddt_accel.networks.rae.config import COMPUTED, DiTDHConfig
from ddt_accel.networks.releases import Release, Shapes, blocks_in
from ddt_accel.networks.yaml_files import Place

TITLE = "RAE DiT-DH"
SETTING = "depth"
# A sampling configuration may hold the weaker network of autoguidance, too.
SETTINGS_AT: tuple[Place, ...] = (("stage_2", "params"), ("guidance", "guidance_model", "params"))
LATENTS_AT: Place = ("misc", "latent_size")
PARTS: frozenset[str] = frozenset({"pos_embed", "s_projector"})
TABLES: tuple[str, ...] = COMPUTED  # the encoder's cosines and sines, then the decoder's


def _released(folder: str, *, side: int, widths: tuple[int, int], depth: int, heads: int) -> Release:
    """All of them are of DINOv2-B's latents, with two decoder blocks of 16 heads."""
    config = DiTDHConfig(
        input_size=side, in_channels=768, hidden_size=widths, depth=(depth, 2), num_heads=(heads, 16), num_classes=1000
    )
    return Release(
        repository="nyu-visionx/RAE-collections",
        path=f"DiTs/Dinov2/wReg_base/{folder}/stage2_model.pt",
        config=config,
        latent_shape=config.fixed_shape,
    )


# Of each kind there are several, by epochs: `DiTDH-XL`, `DiTDH-XL_ep80`, `DiTDH-S_ep14`, …
RELEASES: tuple[Release, ...] = tuple(
    release
    for pixels, side in ((256, 16), (512, 32))
    for release in (
        _released(f"ImageNet{pixels}/DiTDH-XL*", side=side, widths=(1152, 2048), depth=28, heads=16),
        _released(f"ImageNet{pixels}/DiTDH-S*", side=side, widths=(384, 2048), depth=12, heads=6),
    )
)


def sign_in(shapes: Shapes) -> str | None:
    """The frequencies of the time, which the other families compute."""
    return "t_embedder.W" if "t_embedder.W" in shapes else None


def settings_of(shapes: Shapes) -> SplitConfig:
    """They follow where the widths differ and rotary tables, or norms of queries and keys, say how wide a head is.

    A table of K + 1 labels is taken for K classes and the null label, as the published ones are.
    """
    try:
        return _read_off(shapes)
    except ConfigError:
        raise
    except (LookupError, ValueError, ZeroDivisionError):
        raise ConfigError("its settings cannot be read off the weights, of which some are missing or odd") from None


def _read_off(shapes: Shapes) -> DiTDHConfig:
    if "s_embedder.proj.weight" not in shapes:
        raise ConfigError("it has no s_embedder, as a DiT without an encoder of its own, which has nothing to share")
    wide, channels = shapes["s_embedder.proj.weight"][:2]
    own = shapes["x_embedder.proj.weight"][0]
    numbers = blocks_in(shapes, "attn.proj.weight")
    encoder = [number for number in numbers if shapes[f"blocks.{number}.attn.proj.weight"][0] == wide]
    if wide == own:
        raise ConfigError("how many of its blocks are encoder cannot be read off the weights, as all are equally wide")
    firsts = ("blocks.0", f"blocks.{len(encoder)}")
    heads = [shapes.get(f"{first}.attn.q_norm.weight", shapes.get(TABLES[2 * part], ()))[-1:]
             for part, first in enumerate(firsts)]  # fmt: skip
    if not all(heads):
        raise ConfigError(
            "its numbers of heads cannot be read off the weights, which have neither rotary tables "
            f"({TABLES[0]}, …) nor norms of queries and keys"
        )
    places = shapes["pos_embed"][1] if "pos_embed" in shapes else shapes.get(TABLES[0], (0,))[0]
    if not places:
        raise ConfigError(
            "the size of its latents cannot be read off the weights, which have neither pos_embed nor rotary tables "
            f"({TABLES[0]}, …)"
        )
    gated = "blocks.0.mlp.w12.weight" in shapes
    inner = [shapes[f"{first}.mlp.{'w3' if gated else 'fc2'}.weight"][1] for first in firsts]
    for ratio in _ratios(wide, inner[0], gated=gated):
        config = DiTDHConfig(
            input_size=math.isqrt(places),
            in_channels=channels,
            hidden_size=(wide, own),
            depth=(len(encoder), len(numbers) - len(encoder)),
            num_heads=(wide // heads[0][0], own // heads[1][0]),
            mlp_ratio=ratio,
            num_classes=shapes["y_embedder.embedding_table.weight"][0] - 1,
            use_qknorm="blocks.0.attn.q_norm.weight" in shapes,
            use_swiglu=gated,
            use_rmsnorm="blocks.0.norm1.weight" in shapes,
            use_pos_embed="pos_embed" in shapes,
        )
        if [config.mlp_width(0), config.mlp_width(1)] == inner:
            return config
    raise ConfigError("its mlp_ratio cannot be read off the weights, whose MLPs have different ones")


def _ratios(width: int, inner: int, *, gated: bool) -> Iterator[float]:
    """Ratios of an MLP with these hidden features: the published one, then those of small denominators."""
    yield 4.0
    lowest = math.ceil(1.5 * inner) if gated else inner
    for denominator in range(1, 257):
        first = math.ceil(lowest * denominator / width)
        last = math.ceil((lowest + 2) * denominator / width)
        yield from (numerator / denominator for numerator in range(max(1, first), last + 1))


def table_shapes(config: SplitConfig) -> Shapes:
    """The rotary tables; every value stands twice in them."""
    own = cast(DiTDHConfig, config)
    places = own.input_size**2
    return {name: (places, own.hidden_size[part // 2] // own.num_heads[part // 2]) for part, name in enumerate(TABLES)}
