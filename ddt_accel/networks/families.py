"""The families of split networks: the one table that a new one is entered in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import LatentShape, SplitConfig, TrainableConfig, TrainShape, from_mapping
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.ddt.inference import PreparedDDT
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.networks.pixnerd.config import PixNerdConfig
from ddt_accel.networks.pixnerd.inference import PreparedPixNerd
from ddt_accel.networks.pixnerd.network import PixNerd
from ddt_accel.networks.prepared import Arithmetic, PreparedNetwork
from ddt_accel.networks.rae.config import DiTDHConfig
from ddt_accel.networks.rae.inference import PreparedDiTDH
from ddt_accel.networks.rae.network import DiTDH
from ddt_accel.networks.split import SplitNetwork


@dataclass(frozen=True, kw_only=True)
class Family:
    """What there is of a family: the types of its settings, which name it, of its network, and of that prepared."""

    config: type[Any]
    network: type[Any]
    prepared: type[Any]

    @property
    def name(self) -> str:
        name: str = self.config.family
        return name


FAMILIES = {
    family.name: family
    for family in (
        Family(config=DDTConfig, network=DDT, prepared=PreparedDDT),
        Family(config=DiTDHConfig, network=DiTDH, prepared=PreparedDiTDH),
        Family(config=PixNerdConfig, network=PixNerd, prepared=PreparedPixNerd),
    )
}
UNNAMED = DDTConfig.family  # of files that were written when there was one family


def build(config: SplitConfig) -> SplitNetwork:
    """A network with fresh weights."""
    network: SplitNetwork = FAMILIES[config.family].network(config)
    return network


def prepare(model: SplitNetwork, latent_shape: LatentShape, arithmetic: Arithmetic) -> PreparedNetwork:
    """A network laid out for inference on latents [C, H, W]; raises ConfigError where these do not fit it."""
    prepared: PreparedNetwork = FAMILIES[model.config.family].prepared(model, latent_shape, arithmetic)
    return prepared


def trainable(family: str | None, shape: TrainShape) -> TrainableConfig:
    """The settings of a network that is trained on pictures; raises ConfigError for a family that is not."""
    family = family or UNNAMED
    names = [name for name, one in FAMILIES.items() if hasattr(one.config, "for_pictures")]
    if family not in names:
        raise ConfigError(f"--family is {family!r}; on pictures {' and '.join(names)} can be trained.")
    config: TrainableConfig = FAMILIES[family].config.for_pictures(shape)
    return config


def as_mapping(config: SplitConfig) -> dict[str, Any]:
    """The settings as files of ours keep them; `config_of` reads them back."""
    return asdict(config) | ({} if config.family == UNNAMED else {"family": config.family})


def config_of(values: Mapping[str, Any]) -> SplitConfig:
    """Settings from a mapping that says its family, or names what only one family has.

    Raises ConfigError where settings lack or are impossible.
    """
    named = values.get("family")
    if named is not None and named not in FAMILIES:
        raise ConfigError(f"The configuration's family is {named!r}; there are {', '.join(FAMILIES)}.")
    if named is None:
        fitting = [name for name, family in FAMILIES.items() if family.config.tells(values)]
        named = fitting[0] if len(fitting) == 1 else UNNAMED
    config: SplitConfig = from_mapping(FAMILIES[named].config, values)
    return config
