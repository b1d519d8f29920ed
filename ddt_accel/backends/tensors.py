"""The tensors at which the two networks are cut: names, order, types and shapes, for exports and for all that run them.

    encoder: latents, times, labels → cache                          cache: the decoder's modulations, or the state
    decoder: latents, cache → velocity                               a forecast is made before it (`sources` = 0)
    decoder: latents, cache_1 … cache_S, weights, constant → velocity    a forecast is made inside

With `sources` = S the decoder works under `Σ_s weights[:, s] · cache_s + constant`, in terms of modulations; with the
state as cache, `W Σ_s w_s s_s + b Σ_s w_s + constant`. A state that is used as it is has weight 1 and constant 0.

Where networks are cut blockwise, a cache of modulations is a tensor for each decoder block and one for the final layer,
named cache.0, cache.1, …: together they are so large that indices into them would not fit into 32 bits. The encoder
then ends at the state, a tensor like any other, of which products make them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import SplitConfig

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
CACHES = ("modulations", "state")
MAX_ENGINE_SOURCES = 3
BATCH = "B"


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output; "B" in a shape is the batch."""

    name: str
    dtype: str
    shape: tuple[str | int, ...]

    def at(self, batch: int) -> tuple[int, ...]:
        return tuple(batch if isinstance(size, str) else size for size in self.shape)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How encoder and decoder are cut apart: in which precision, at what, from how many states forecasts are made
    inside the decoder, and whether modulations stay apart by block."""

    precision: str = "fp32"
    cache: str = "modulations"
    sources: int = 0
    blockwise: bool = False

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise ConfigError(f"precision is {self.precision!r}; choose one of {', '.join(DTYPES)}.")
        if self.cache not in CACHES:
            raise ConfigError(f"cache is {self.cache!r}; choose one of {', '.join(CACHES)}.")
        if not 0 <= self.sources <= MAX_ENGINE_SOURCES:
            raise ConfigError(f"A decoder for forecasts from {self.sources} states; give 0 to {MAX_ENGINE_SOURCES}.")

    @property
    def dtype(self) -> str:
        return DTYPES[self.precision]

    def caches(self) -> list[str]:
        """The decoder's inputs that the encoder's output goes to."""
        return [self.cache] if self.sources == 0 else [f"{self.cache}_{s + 1}" for s in range(self.sources)]


def network_name(kind: str, width: float) -> str:
    """What "encoder" or "decoder" is called at a width: in files, and for whatever runs it."""
    return kind if width == 1.0 else f"{kind}-{width:g}"


def tensor_table(config: SplitConfig, latent_shape: tuple[int, int, int], cut: Cut) -> dict[str, list[TensorSpec]]:
    """Inputs and, last, the output of "encoder" and "decoder", in order; a blockwise encoder has several."""
    tokens = config.num_tokens(latent_shape)
    in_parts = cut.blockwise and cut.cache == "modulations"
    whole = config.state_size if cut.cache == "state" else config.modulation_size
    widths = config.modulation_widths if in_parts else (whole,)
    latents = TensorSpec(name="latents", dtype="float32", shape=(BATCH, *latent_shape))
    times = TensorSpec(name="times", dtype="float32", shape=(BATCH,))
    labels = TensorSpec(name="labels", dtype="int64", shape=(BATCH,))

    state = TensorSpec(name="state", dtype=cut.dtype, shape=(BATCH, tokens, config.state_size))

    def cached(name: str) -> list[TensorSpec]:
        names = [f"{name}.{part}" for part in range(len(widths))] if in_parts else [name]
        return [
            TensorSpec(name=one, dtype=cut.dtype, shape=(BATCH, tokens, width))
            for one, width in zip(names, widths, strict=True)
        ]

    forecast = [
        TensorSpec(name="weights", dtype="float32", shape=(BATCH, cut.sources)),
        TensorSpec(name="constant", dtype="float32", shape=(BATCH, config.modulation_size)),
    ]
    velocity = TensorSpec(name="velocity", dtype="float32", shape=(BATCH, *latent_shape))
    return {
        "encoder": [latents, times, labels, *([state] if in_parts else []), *cached(cut.cache)],
        "decoder": [
            latents,
            *(one for name in cut.caches() for one in cached(name)),
            *(forecast if cut.sources else []),
            velocity,
        ],
    }


def as_lists(table: dict[str, list[TensorSpec]], widths: tuple[float, ...] = (1.0,)) -> dict[str, list[list[Any]]]:
    """The table as a manifest has it; networks of all widths have the same tensors."""
    return {
        network_name(kind, width): [[one.name, one.dtype, list(one.shape)] for one in tensors]
        for width in widths
        for kind, tensors in table.items()
    }
