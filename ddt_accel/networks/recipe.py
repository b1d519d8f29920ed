"""A published way to sample, and the values that one is read from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol

from ddt_accel.errors import ConfigError
from ddt_accel.networks.yaml_files import Document, Place
from ddt_accel.spec import MAX_STEPS, SamplingSpec, is_number, is_whole


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of `SamplingSpec` by name, and the checkpoint of the second network that guides, where one does.

    `settings` may be of a closed interval without guidance: what holds as soon as there is any.
    """

    settings: Mapping[str, Any] = field(hash=False)
    guide: str | None = None

    def spec(self, said: Mapping[str, Any]) -> SamplingSpec:
        """The recipe but for what is `said`; raises ConfigError as `SamplingSpec` does."""
        return SamplingSpec.chosen(self.settings, said)


@dataclass(frozen=True, kw_only=True)
class PublishedRecipe:
    """How the checkpoints of a repository are sampled by those who published them; `path` is a pattern of places."""

    repository: str
    path: str
    recipe: Recipe

    def is_of(self, repository: str, path: str) -> bool:
        return repository == self.repository and fnmatchcase(path, self.path)


class RecipeModule(Protocol):
    """The contents of a family's `recipe.py`."""

    SAMPLER_AT: str  # where its YAMLs say how to sample
    PUBLISHED: tuple[PublishedRecipe, ...]  # the first that a checkpoint is of counts

    def recipe_in(self, document: Document) -> Recipe | None:
        """The recipe of a YAML, None where it has none of this family; raises ConfigError where it makes no sense."""


def value_at(document: Document, place: str, default: Any = None) -> Any:
    """The value at `a.b.c`, interpolated, or what stands for it where there is none."""
    keys: Place = tuple(place.split("."))
    try:
        value = document.values(keys[:-1], [keys[-1]])[keys[-1]]
    except LookupError:
        return default
    return default if value is None else value


def real_at(document: Document, place: str, default: float | None = None) -> float:
    """A number; raises ConfigError where there is none, or where it is something else."""
    value = value_at(document, place, default)
    try:
        # YAML 1.1 takes 1e-6 for text.
        found = float(value) if isinstance(value, str) or is_number(value) else math.nan
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ConfigError(f"Its {place} is {value!r}; a number is expected.")
    return found


def steps_at(document: Document, place: str, default: int, least: int) -> int:
    """A number of steps, or of the points between them."""
    value = value_at(document, place, default)
    value = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if not is_whole(value) or not least <= value <= MAX_STEPS:
        raise ConfigError(f"Its {place} is {value!r}; a whole number from {least} to {MAX_STEPS} is expected.")
    return int(value)


def class_at(document: Document, place: str) -> str:
    """The last part of a class or function that is named by its path in Python; empty where none is."""
    return str(value_at(document, place, "")).rpartition(".")[2]
