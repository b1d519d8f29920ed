"""Which class each image of a seed is drawn of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddt_accel.errors import ConfigError
from ddt_accel.sampling.noise import draw_labels
from ddt_accel.spec import is_whole

_SHOWN = 16  # labels that are listed one by one where a run tells what it was drawn of


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels as a function of (seed, image index), like noise: whoever draws an image knows its label.

    `in_turn` are the classes that images take by their index, over and over; None draws them at random. Raises
    ConfigError for classes that are none of `num_classes`.
    """

    num_classes: int
    in_turn: tuple[int, ...] | None

    def __post_init__(self) -> None:
        given = self.in_turn
        if given is not None and (not given or not all(is_whole(one) and 0 <= one < self.num_classes for one in given)):
            raise ConfigError(f"The labels are {self.described}; give whole numbers from 0 to {self.num_classes - 1}.")

    @classmethod
    def equal(cls, num_classes: int) -> Labels:
        """Index modulo classes, as published evaluations have it: every class as often as any other."""
        return cls(num_classes=num_classes, in_turn=tuple(range(num_classes)))

    @classmethod
    def random(cls, num_classes: int) -> Labels:
        """Uniform, each drawn from (seed, image index)."""
        return cls(num_classes=num_classes, in_turn=None)

    def of(self, *, seed: int, indices: Sequence[int]) -> Tensor:
        """The labels [B] int64 of the images `indices` [B]."""
        if self.in_turn is None:
            return draw_labels(self.num_classes, seed=seed, indices=indices)
        return torch.tensor([self.in_turn[index % len(self.in_turn)] for index in indices], dtype=torch.int64)

    @property
    def described(self) -> str:
        """The same words for the same labels, and others for others."""
        if self.in_turn is None:
            return "random"
        if self.in_turn == tuple(range(self.num_classes)):
            return "equal"
        listed = ",".join(map(str, self.in_turn))
        if len(self.in_turn) <= _SHOWN:
            return listed
        begins = ",".join(map(str, self.in_turn[:4]))
        return f"{begins},… ({len(self.in_turn)} of SHA-256 {hashlib.sha256(listed.encode()).hexdigest()})"
