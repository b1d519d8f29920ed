"""Published ways to sample, whatever the family: those of YAMLs, and those of known repositories."""

from __future__ import annotations

from pathlib import Path

from ddt_accel.errors import ConfigError
from ddt_accel.networks.families import FAMILIES
from ddt_accel.networks.recipe import Recipe
from ddt_accel.networks.yaml_files import read_document

RECIPES = tuple(family.recipe for family in FAMILIES.values())


def read_recipe(path: str | Path) -> Recipe:
    """What a published YAML says of sampling; raises ConfigError where it says nothing, or nothing that can be run."""
    path = Path(path).expanduser()
    document = read_document(path)
    try:
        for family in RECIPES:
            if (found := family.recipe_in(document)) is not None:
                found.spec({})  # whose numbers make sense together
                return found
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be followed (--like). {error}") from None
    places = " or ".join(dict.fromkeys(family.SAMPLER_AT for family in RECIPES))
    raise ConfigError(f"{path} does not say how to sample (--like): looked for {places}; it has {document.outline()}.")


def published_recipe(name: str) -> Recipe | None:
    """That of a checkpoint by its name, `owner/repository` or `owner/repository:path`; None where none is known."""
    repository, _, path = name.partition(":")
    found = (one.recipe for family in RECIPES for one in family.PUBLISHED if one.is_of(repository, path))
    return next(found, None)
