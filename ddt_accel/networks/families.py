"""The families of split networks: the one table that a new one is entered in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from ddt_accel.errors import CheckpointError, ConfigError
from ddt_accel.networks.config import LatentShape, SplitConfig, TrainableConfig, TrainShape, from_mapping, stated

if TYPE_CHECKING:  # settings are read without PyTorch, which takes seconds to load
    from torch import Tensor

    from ddt_accel.networks.prepared import Arithmetic, PreparedNetwork
    from ddt_accel.networks.recipe import RecipeModule
    from ddt_accel.networks.releases import Published, Release, Shapes
    from ddt_accel.networks.split import SplitNetwork


@dataclass(frozen=True)
class Family:
    """What there is of a family, in the folder of its name; each file of it is read when it is needed."""

    name: str

    def _module(self, file: str) -> Any:
        return import_module(f"{__package__}.{self.name}.{file}")

    @cached_property
    def config(self) -> type[Any]:
        """The type of its settings."""
        return cast(type, self._module("config").CONFIG)

    @cached_property
    def network(self) -> type[Any]:
        """The type of its network."""
        return cast(type, self._module("network").NETWORK)

    @cached_property
    def prepared(self) -> type[Any]:
        """The type of that prepared for inference."""
        return cast(type, self._module("inference").PREPARED)

    @cached_property
    def published(self) -> Published:
        """What is known of its published files."""
        return cast("Published", self._module("published"))

    @cached_property
    def recipe(self) -> RecipeModule:
        """How they are sampled."""
        return cast("RecipeModule", self._module("recipe"))

    @property
    def settings(self) -> list[str]:
        return [field.name for field in fields(self.config)]

    @property
    def needed(self) -> list[str]:
        """Settings without a default."""
        return [field.name for field in fields(self.config) if field.default is MISSING]


FAMILIES = {name: Family(name) for name in ("ddt", "rae", "pixnerd")}
UNNAMED = "ddt"  # of files that were written when there was one family


def build(config: SplitConfig) -> SplitNetwork:
    """A network with fresh weights."""
    network: SplitNetwork = FAMILIES[config.family].network(config)
    return network


def prepare(model: SplitNetwork, latent_shape: LatentShape, arithmetic: Arithmetic) -> PreparedNetwork:
    """A network laid out for inference on latents [C, H, W]; raises ConfigError where these do not fit it."""
    prepared: PreparedNetwork = FAMILIES[model.config.family].prepared(model, latent_shape, arithmetic)
    return prepared


def blank_tensors(config: SplitConfig) -> dict[str, Tensor]:
    """The tensors of a network by name, without contents, so that absurd sizes take no memory."""
    return unfilled(config).state_dict()


def unfilled(config: SplitConfig) -> SplitNetwork:
    """A network whose tensors have no contents yet, for those that are there."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Unfilled(TorchFunctionMode):
        """Fills nothing with random numbers: for tensors without contents PyTorch would load its compiler to do so."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = kwargs or {}
            if getattr(func, "__module__", None) == "torch.nn.init":
                return given["tensor"] if "tensor" in given else args[0]
            return func(*args, **given)

    with torch.device("meta"), Unfilled():
        return build(config)


def published_of(config: SplitConfig) -> Published:
    """What is known of the published files of its family."""
    return FAMILIES[config.family].published


def titles() -> str:
    """What the families are called, for messages."""
    *most, last = (family.published.TITLE for family in FAMILIES.values())
    return f"{', '.join(most)} or {last}"


def trainable(family: str | None, shape: TrainShape) -> TrainableConfig:
    """The settings of a network that is trained on pictures; raises ConfigError for a family that is not."""
    family = family or UNNAMED
    names = [name for name, one in FAMILIES.items() if hasattr(one.config, "for_pictures")]
    if family not in names:
        raise ConfigError(f"--family is {family!r}; on pictures {' and '.join(names)} can be trained.")
    config: TrainableConfig = FAMILIES[family].config.for_pictures(shape)
    return config


def release_of(repository: str, path: str) -> Release | None:
    """What is known of a file in a repository."""
    every = (release for family in FAMILIES.values() for release in family.published.RELEASES)
    return next((release for release in every if release.is_of(repository, path)), None)


def family_in(shapes: Shapes) -> tuple[Family, str] | None:
    """The family of weights, and the tensor that tells it; None where none does."""
    for family in FAMILIES.values():
        if sign := family.published.sign_in(shapes):
            return family, sign
    return None


def settings_in(shapes: Shapes) -> SplitConfig:
    """Settings as they follow from weights; raises ConfigError with a clause that says what does not follow."""
    found = family_in(shapes)
    if found is None:
        raise ConfigError(f"its weights have no tensor that tells which of {titles()} it is")
    return found[0].published.settings_of(shapes)


def check_family(config: SplitConfig, shapes: Shapes, place: object, origin: str) -> None:
    """Raises CheckpointError where weights are of another family than the configuration."""
    found = family_in(shapes)
    if found is not None and found[0].name != config.family:
        (family, sign), other = found, published_of(config)
        raise CheckpointError(
            f"{place} holds a network of {family.published.TITLE}, by its tensor {sign}, and the configuration "
            f"{origin} is one of {other.TITLE}, by its {other.SETTING}; give the one that belongs to the file."
        )


def fits(config: SplitConfig, shapes: Shapes) -> bool:
    """Whether weights are those of such a network, as far as names and shapes say."""
    found, tables = family_in(shapes), published_of(config).table_shapes(config)
    return (
        (found is None or found[0].name == config.family)
        and all(shapes.get(name) == tuple(tensor.shape) for name, tensor in blank_tensors(config).items())
        and all(shapes.get(name, shape) == shape for name, shape in tables.items())
    )


def as_mapping(config: SplitConfig) -> dict[str, Any]:
    """The settings as files of ours keep them; `config_of` reads them back."""
    return stated(config) | ({} if config.family == UNNAMED else {"family": config.family})


def config_of(values: Mapping[str, Any]) -> SplitConfig:
    """Settings from a mapping that says its family, or names what only one family has.

    Raises ConfigError where settings lack or are impossible.
    """
    named = values.get("family")
    if named is not None and named not in FAMILIES:
        raise ConfigError(f"The configuration's family is {named!r}; there are {', '.join(FAMILIES)}.")
    if named is None:
        fitting = [name for name, family in FAMILIES.items() if family.config.tells(values)]
        named = fitting[0] if len(fitting) == 1 else nearest(values).name
    config: SplitConfig = from_mapping(FAMILIES[named].config, values)
    return config


def nearest(values: Mapping[str, Any]) -> Family:
    """The family of which a mapping has most settings, the oldest of equals."""
    return max(FAMILIES.values(), key=lambda family: sum(name in values for name in family.needed) / len(family.needed))
