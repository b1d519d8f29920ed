"""What is known of a family's published files: each family says it in its `published.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from ddt_accel.networks.config import LatentShape, SplitConfig
from ddt_accel.networks.yaml_files import Place

Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by the network's own names


@dataclass(frozen=True, kw_only=True)
class Release:
    """A published checkpoint; `path` is its place in the repository, or a pattern of several."""

    repository: str
    path: str
    config: SplitConfig
    latent_shape: LatentShape

    def is_of(self, repository: str, path: str) -> bool:
        return repository == self.repository and fnmatchcase(path, self.path)


class Published(Protocol):
    """The contents of a family's `published.py`."""

    TITLE: str  # as its authors call it
    SETTING: str  # a setting that only this family has
    SETTINGS_AT: tuple[Place, ...]  # of a YAML; the first is the checkpoint's network, further ones beside it
    LATENTS_AT: Place  # of [C, H, W] in a YAML, its own name included
    PARTS: frozenset[str]  # first parts of tensor names, beyond those that all families have
    TABLES: tuple[str, ...]  # tensors that files may hold, and that follow from the settings
    RELEASES: tuple[Release, ...]  # the first that a file is of counts

    def sign_in(self, shapes: Shapes) -> str | None:
        """The tensor by which weights are seen to be this family's, in words; None where they are not."""

    def settings_of(self, shapes: Shapes) -> SplitConfig:
        """The settings as they follow from the weights, tables among them.

        Raises ConfigError with a clause that says what does not follow.
        """

    def table_shapes(self, config: SplitConfig) -> Shapes:
        """Shapes of the `TABLES`."""


def blocks_in(shapes: Shapes, name: str) -> list[int]:
    """Numbers of the blocks that have this tensor, in order."""
    numbers = (key.split(".", 2) for key in shapes)
    return sorted(
        int(parts[1])
        for parts in numbers
        if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdecimal() and parts[2] == name
    )
