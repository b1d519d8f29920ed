"""The calibrated statistics: sums over sample trajectories, mergeable in any order."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddt_accel.artifacts import checksum, read_arrays, write_arrays
from ddt_accel.calibration.between import interpolated
from ddt_accel.calibration.closed_loop import no_shared_sum, shared_runs
from ddt_accel.calibration.coarser import coarser_steps
from ddt_accel.calibration.guide_sums import GUIDE_ARRAYS, GuideSums
from ddt_accel.calibration.width_sums import WidthSums
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.solver.misses import WAYS, Misses, misses_of
from ddt_accel.solver.solve import GuideMeans
from ddt_accel.solver.width_statistics import WidthStatistics
from ddt_accel.spec import SamplingSpec

FORMAT, VERSION = "ddt-accel calibration", 3
ARRAYS = ("similarity_sum", "gram_sum", "mean_sum", "modulation_sum", "bias_sum", "sensitivity_sum")
# Not in the files of older versions, nor where nothing was measured.
COARSER, SHARED = "coarser_sum", "shared_sum"

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """How the encoder state changes along unshared trajectories: sums over the images of `ranges`, float64.

    Per image, averaged over tokens, with E evaluations and M modulations of the decoder per token:

    - `similarity_sum` [E, E]: the cosine between the states of the same token at evaluations j and i, averaged over
      both guidance branches;
    - `gram_sum` [2, E, E]: their inner product, for the conditional and the unconditional branch;
    - `mean_sum` [E, D] and `modulation_sum` [E, M]: the state and its modulations, averaged over both branches;
    - `bias_sum` [M]: the modulations of a state of zeros, the same for every image;
    - `sensitivity_sum` [E, 3]: for the first `sensitivity_samples` images, and the evaluations that were measured:
      how often, the sum and the sum of squares of the final mean squared error per squared error of the state;
    - `coarser_sum` [S, 3]: for the same images, and the numbers of steps of `coarser_steps`: how often, and the sums of
      the final mean squared error to the end of all steps and to the reference solution;
    - `shared_sum` [W, B, 3]: for the same images, `WAYS`, and the numbers of encoder runs of `shared_runs`: how often,
      and the sums of the final mean squared error to the unshared end, as measured and as predicted.

    Where a second network guides, the unconditional branch is that network's, whose states may have another width: its
    means are in `guide_sums`, and the others are those of the conditional branch alone. Of a network with nested widths
    `width_sums` say what it does where it is narrow.
    """

    spec: SamplingSpec
    similarity_sum: Array
    gram_sum: Array
    mean_sum: Array
    modulation_sum: Array
    bias_sum: Array
    sensitivity_sum: Array
    coarser_sum: Array
    shared_sum: Array
    ranges: tuple[ImageRange, ...]
    checkpoint_sha256: str
    latent_shape: tuple[int, int, int]
    guide_sums: GuideSums | None = None
    width_sums: WidthSums | None = None

    def __post_init__(self) -> None:
        e = self.spec.num_evaluations
        expected: dict[str, tuple[int, ...]] = {
            "similarity_sum": (e, e),
            "gram_sum": (2, e, e),
            "mean_sum": (e, self.mean_sum.shape[-1]),
            "modulation_sum": (e, self.modulation_sum.shape[-1]),
            "bias_sum": self.modulation_sum.shape[-1:],
            "sensitivity_sum": (e, 3),
            COARSER: (len(coarser_steps(self.spec)), 3),
            SHARED: (len(WAYS), len(shared_runs(self.spec)), 3),
        }
        arrays: dict[str, Array] = {}
        for name in expected:
            arrays[name] = getattr(self, name)
        if self.guide_sums is not None:
            arrays |= self.guide_sums.arrays()
            size = self.guide_sums.modulation_sum.shape[-1:]
            expected |= {
                "guide_mean_sum": (e, self.guide_sums.mean_sum.shape[-1]),
                "guide_modulation_sum": (e, *size),
                "guide_bias_sum": size,
            }
        for name, array in arrays.items():
            shape = expected[name]
            if array.shape != shape or array.dtype != np.float64:
                raise ConfigError(f"{name} is {array.dtype}{list(array.shape)}; expected float64 {list(shape)}.")
        if self.width_sums is not None:
            self.width_sums.check(self.spec, self.mean_sum.shape[-1], self.modulation_sum.shape[-1])
        if any(r.seed < 0 or not 0 <= r.first < r.stop for r in self.ranges):
            raise ConfigError("The calibrated image ranges make no sense.")

    @property
    def num_samples(self) -> int:
        return sum(r.stop - r.first for r in self.ranges)

    @property
    def similarity(self) -> Array:
        """S [E, E]: the published statistic."""
        return self.similarity_sum / max(1, self.num_samples)

    @property
    def gram(self) -> Array:
        """E⟨s_i, s_j⟩ per token [E, E], averaged over both branches."""
        gram: Array = self.gram_sum.sum(axis=0) / (2 * max(1, self.num_samples))
        return gram

    @property
    def branch_grams(self) -> Array:
        """The same [2, E, E] for the conditional and for the unconditional branch."""
        grams: Array = self.gram_sum / max(1, self.num_samples)
        return grams

    @property
    def mean(self) -> Array:
        """μ [E, D]: the state's mean over tokens, images and branches, or the conditional one, where a guide is."""
        return self.mean_sum / max(1, self.num_samples)

    @property
    def means(self) -> list[Array]:
        """Those of each network."""
        sums = [self.mean_sum] if self.guide_sums is None else [self.mean_sum, self.guide_sums.mean_sum]
        return [total / max(1, self.num_samples) for total in sums]

    @property
    def mean_gram(self) -> Array:
        """⟨μ_i, μ_j⟩ [E, E], averaged over the networks: what a mean trajectory takes off `gram`."""
        return mean_gram(self.means)

    @property
    def guide(self) -> GuideMeans | None:
        """Of the second network, where one guides."""
        sums, count = self.guide_sums, max(1, self.num_samples)
        if sums is None:
            return None
        return GuideMeans(
            checkpoint_sha256=sums.checkpoint_sha256,
            mean_modulations=(sums.modulation_sum / count).astype(np.float32),
            modulation_bias=(sums.bias_sum / count).astype(np.float32),
        )

    @property
    def guide_sha256(self) -> str | None:
        return self.guide_sums.checkpoint_sha256 if self.guide_sums else None

    @cached_property
    def widths(self) -> WidthStatistics | None:
        """Where the network has several."""
        sums = self.width_sums
        return None if sums is None else sums.statistics(self.spec, self.mean, self.num_samples)

    @property
    def mean_modulations(self) -> NDArray[np.float32]:
        """The modulations of μ, [E, M]."""
        return (self.modulation_sum / max(1, self.num_samples)).astype(np.float32)

    @property
    def modulation_bias(self) -> NDArray[np.float32]:
        """The modulations of a state of zeros, [M]."""
        return (self.bias_sum / max(1, self.num_samples)).astype(np.float32)

    @property
    def sensitivity(self) -> Array | None:
        """g [E]: final root-mean-square error of the latents per root-mean-square error of the state's tokens.

        Evaluations that were not measured lie on a line in log g between those that were; a change of guidance is never
        interpolated over. None where nothing was measured.
        """
        count, total, _ = self.sensitivity_sum.T
        measured = np.flatnonzero(count)
        if len(count) == 1:
            return np.ones(1)  # the only evaluation always refreshes
        if len(measured) == 0:
            return None
        log_g = 0.5 * np.log(np.maximum(total[measured] / count[measured], np.finfo(np.float64).tiny))
        guidance, every = self.spec.guidance_weights, np.arange(len(count), dtype=np.float64)
        return np.exp(interpolated(every, guidance, measured.astype(np.float64), guidance[measured], log_g))

    @property
    def sensitivity_error(self) -> Array | None:
        """The relative standard error of g at the evaluations that were measured on at least two images."""
        count, total, squares = self.sensitivity_sum.T
        measured = count > 1
        if not measured.any():
            return None
        n, mean = count[measured], total[measured] / count[measured]
        variance = np.maximum(squares[measured] / n - mean**2, 0.0) * n / (n - 1)
        error: Array = np.sqrt(variance / n) / (2 * np.maximum(mean, np.finfo(np.float64).tiny))  # g is a root
        return error

    def coarser_error(self, steps: int) -> tuple[float, float] | None:
        """Root-mean-square errors of the final latents in so many steps: to the end of all steps, and to the reference
        solution. Between measured numbers of steps the first goes with their inverse, for it vanishes at all steps, the
        second with a power of them. None where it was not measured, or for fewer steps than were.
        """
        measured = self.coarser_sum[:, 0] > 0
        counts = np.array(coarser_steps(self.spec), dtype=np.float64)[measured]
        if len(counts) == 0 or not counts[0] <= steps <= counts[-1]:
            return None
        seen, *sums = self.coarser_sum[measured].T
        copying, reference = (np.sqrt(total / seen) for total in sums)
        power = np.interp(np.log(steps), np.log(counts), np.log(np.maximum(reference, np.finfo(np.float64).tiny)))
        return float(np.interp(-1 / steps, -1 / counts, copying)), float(np.exp(power))

    @property
    def misses(self) -> Misses:
        """How far predicted errors were from those of shared trajectories."""
        return misses_of(shared_runs(self.spec), self.shared_sum)

    @cached_property
    def sha256(self) -> str:
        """Identifies the content, whatever file it lies in."""
        return checksum(self._document(), self._arrays())

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
        if self.guide_sha256 != other.guide_sha256:
            raise MismatchError("Two calibrations with different guides (--guide), or one without, cannot be merged.")
        if self.latent_shape != other.latent_shape:
            raise MismatchError(
                f"Two calibrations on latents of {self.latent_shape} and {other.latent_shape} cannot be merged."
            )
        if widths_of(self) != widths_of(other):
            raise MismatchError(
                f"Calibrations at the widths {list(widths_of(self))} and {list(widths_of(other))} cannot be merged; "
                "one without narrow widths is of an earlier version: calibrate anew."
            )
        for images in other.ranges:
            if self.contains(images):
                raise MismatchError(
                    f"Both calibrations contain images {images.first} … {images.stop - 1} of seed {images.seed} or "
                    "some of them; calibrate with another seed."
                )
        return Calibration(
            spec=self.spec,
            **{name: getattr(self, name) + getattr(other, name) for name in (*ARRAYS, COARSER, SHARED)},
            ranges=_joined((*self.ranges, *other.ranges)),
            checkpoint_sha256=self.checkpoint_sha256,
            latent_shape=self.latent_shape,
            guide_sums=self.guide_sums + other.guide_sums if self.guide_sums and other.guide_sums else None,
            width_sums=self.width_sums + other.width_sums if self.width_sums and other.width_sums else None,
        )

    def save(self, path: str | Path) -> None:
        """Writes the sums, atomically, as a safetensors file."""
        write_arrays(Path(path), FORMAT, VERSION, self._document(), self._arrays())

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Reads a calibration; raises ArtifactError where the file is damaged, foreign or makes no sense."""
        content, arrays = read_arrays(Path(path), FORMAT, VERSION)
        try:
            channels, height, width = map(int, content["latent_shape"])
            spec = SamplingSpec.from_dict(content["spec"])
            return cls(
                spec=spec,
                **{name: arrays[name] for name in ARRAYS},
                coarser_sum=arrays.get(COARSER, np.zeros((len(coarser_steps(spec)), 3))),
                shared_sum=arrays.get(SHARED, no_shared_sum(spec)),
                ranges=tuple(ImageRange(**r) for r in content["ranges"]),
                checkpoint_sha256=str(content["checkpoint_sha256"]),
                latent_shape=(channels, height, width),
                guide_sums=GuideSums(
                    **{name: arrays[f"guide_{name}"] for name in GUIDE_ARRAYS},
                    checkpoint_sha256=str(content["guide_sha256"]),
                )
                if "guide_sha256" in content
                else None,
                width_sums=WidthSums.read(content["widths"], arrays) if "widths" in content else None,
            )
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is not a usable calibration ({error}); calibrate anew.") from None

    def _arrays(self) -> dict[str, Array]:
        arrays: dict[str, Array] = {name: getattr(self, name) for name in ARRAYS}
        # What is not there is left out, here and below, so that older files keep their checksum.
        arrays |= {name: array for name in (COARSER, SHARED) if (array := getattr(self, name)).any()}
        for sums in (self.guide_sums, self.width_sums):
            arrays |= sums.arrays() if sums else {}
        return arrays

    def _document(self) -> dict[str, object]:
        return {
            "spec": {**self.spec.document(), "guidance_interval": list(self.spec.guidance_interval)},
            "ranges": [asdict(r) for r in self.ranges],
            "checkpoint_sha256": self.checkpoint_sha256,
            "latent_shape": list(self.latent_shape),
            **({"guide_sha256": self.guide_sha256} if self.guide_sha256 is not None else {}),
            **({"widths": list(self.width_sums.widths)} if self.width_sums else {}),
        }


def widths_of(calibration: Calibration) -> tuple[float, ...]:
    """Those that it has measured, from 1 down."""
    return calibration.width_sums.widths if calibration.width_sums else (1.0,)


def mean_gram(means: list[Array]) -> Array:
    """⟨μ_i, μ_j⟩ [E, E] of means [E, D], averaged over the networks that these are of."""
    return sum((mean @ mean.T for mean in means[1:]), means[0] @ means[0].T) / len(means)


def _joined(ranges: tuple[ImageRange, ...]) -> tuple[ImageRange, ...]:
    """Sorted, neighbours made one: the same set of images always reads the same."""
    joined: list[ImageRange] = []
    for r in sorted(ranges, key=lambda r: (r.seed, r.first)):
        if joined and joined[-1].seed == r.seed and joined[-1].stop == r.first:
            joined[-1] = ImageRange(seed=r.seed, first=joined[-1].first, stop=r.stop)
        else:
            joined.append(r)
    return tuple(joined)
