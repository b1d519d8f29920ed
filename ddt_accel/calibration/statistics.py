"""The calibrated statistics: sums over sample trajectories, mergeable in any order."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddt_accel.artifacts import checksum, read_arrays, write_arrays
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError
from ddt_accel.spec import SamplingSpec

FORMAT, VERSION = "ddt-accel calibration", 1


@dataclass(frozen=True, kw_only=True)
class ImageRange:
    """The images first … stop − 1 of a seed."""

    seed: int
    first: int
    stop: int

    def overlaps(self, other: ImageRange) -> bool:
        return self.seed == other.seed and self.first < other.stop and other.first < self.stop


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """How the encoder state changes along unshared trajectories.

    `similarity_sum` [E, E] float64 adds up, over the images of `ranges`, the cosine between the states of the same
    token at evaluations j and i, averaged over tokens and over both guidance branches.
    """

    spec: SamplingSpec
    similarity_sum: NDArray[np.float64]
    ranges: tuple[ImageRange, ...]
    checkpoint_sha256: str

    def __post_init__(self) -> None:
        e = self.spec.num_evaluations
        if self.similarity_sum.shape != (e, e) or self.similarity_sum.dtype != np.float64:
            raise ConfigError(
                f"similarity_sum is {self.similarity_sum.dtype}{list(self.similarity_sum.shape)}; expected float64 "
                f"[{e}, {e}]."
            )
        if any(r.seed < 0 or not 0 <= r.first < r.stop for r in self.ranges):
            raise ConfigError("The calibrated image ranges make no sense.")

    @property
    def num_samples(self) -> int:
        return sum(r.stop - r.first for r in self.ranges)

    @property
    def similarity(self) -> NDArray[np.float64]:
        """S [E, E]: the published statistic."""
        return self.similarity_sum / max(1, self.num_samples)

    @cached_property
    def sha256(self) -> str:
        """Identifies the content, whatever file it lies in."""
        return checksum(self._document(), {"similarity_sum": self.similarity_sum})

    def contains(self, images: ImageRange) -> bool:
        """Whether any of `images` has been calibrated on."""
        return any(images.overlaps(r) for r in self.ranges)

    def merge(self, other: Calibration) -> Calibration:
        """The statistics of both runs together.

        Raises MismatchError where the runs sampled differently, used other weights, or share images.
        """
        if differences := self.spec.differences(other.spec):
            raise MismatchError(f"Two calibrations of different sampling cannot be merged ({'; '.join(differences)}).")
        if self.checkpoint_sha256 != other.checkpoint_sha256:
            raise MismatchError("Two calibrations of different checkpoints cannot be merged.")
        for images in other.ranges:
            if self.contains(images):
                raise MismatchError(
                    f"Both calibrations contain images {images.first} … {images.stop - 1} of seed {images.seed} or "
                    "some of them; calibrate with another seed."
                )
        return Calibration(
            spec=self.spec,
            similarity_sum=self.similarity_sum + other.similarity_sum,
            ranges=_joined((*self.ranges, *other.ranges)),
            checkpoint_sha256=self.checkpoint_sha256,
        )

    def save(self, path: str | Path) -> None:
        """Writes the sums, atomically, as a safetensors file."""
        write_arrays(Path(path), FORMAT, VERSION, self._document(), {"similarity_sum": self.similarity_sum})

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Reads a calibration; raises ArtifactError where the file is damaged, foreign or makes no sense."""
        content, arrays = read_arrays(Path(path), FORMAT, VERSION)
        try:
            return cls(
                spec=SamplingSpec.from_dict(content["spec"]),
                similarity_sum=arrays["similarity_sum"],
                ranges=tuple(ImageRange(**r) for r in content["ranges"]),
                checkpoint_sha256=str(content["checkpoint_sha256"]),
            )
        except (ConfigError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is not a usable calibration ({error}); calibrate anew.") from None

    def _document(self) -> dict[str, object]:
        return {
            "spec": {**asdict(self.spec), "guidance_interval": list(self.spec.guidance_interval)},
            "ranges": [asdict(r) for r in self.ranges],
            "checkpoint_sha256": self.checkpoint_sha256,
        }


def _joined(ranges: tuple[ImageRange, ...]) -> tuple[ImageRange, ...]:
    """Sorted, neighbours made one: the same set of images always reads the same."""
    joined: list[ImageRange] = []
    for r in sorted(ranges, key=lambda r: (r.seed, r.first)):
        if joined and joined[-1].seed == r.seed and joined[-1].stop == r.first:
            joined[-1] = ImageRange(seed=r.seed, first=joined[-1].first, stop=r.stop)
        else:
            joined.append(r)
    return tuple(joined)
