"""Reference trajectories by workers: their batches are the units, which are kept where `plan` and `fit` look."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ddt_accel.cli.opening import NetworkSettings
from ddt_accel.cli.workers import crew_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from ddt_accel.cluster.crew import Crew
    from ddt_accel.cluster.instance import Site
    from ddt_accel.evaluation.converged import Keeper, Reference
    from ddt_accel.sampling.backend import Backend
    from ddt_accel.stages import OnStage


@dataclass(frozen=True, kw_only=True)
class Told:
    """Which networks follow the trajectories."""

    checkpoint_sha256: str | None
    guide_sha256: str | None
    latent_shape: tuple[int, int, int]

    @classmethod
    def of(cls, backend: Backend, latent_shape: tuple[int, int, int]) -> Told:
        guide = backend.guide
        return cls(
            checkpoint_sha256=backend.checkpoint_sha256,
            guide_sha256=None if guide is None else guide.checkpoint_sha256,
            latent_shape=latent_shape,
        )


class ReferenceWork:
    """Networks in a worker's process: references become latents."""

    def __init__(self, settings: NetworkSettings, cores: int) -> None:
        from ddt_accel.networks.threads import use_threads

        use_threads(settings.threads or cores, measure=False)
        with redirect_stderr(io.StringIO()):  # the process that asks has said the same
            _, self._opened, _ = settings.open(settings.batch_size)
        self.told = Told.of(self._opened.backend, self._opened.latent_shape)

    def __call__(self, part: Reference) -> Tensor:
        return part.run(self._opened.backend, self._opened.latent_shape, part.images.count)


def follow(
    site: Site, settings: NetworkSettings, keeper: Keeper, batches: Mapping[Reference, int], on_stage: OnStage
) -> None:
    """Has workers follow what is not kept yet of references, each in `batches` of so many images: at that size it is
    what one process makes.

    A batch is kept as it is done, until its reference is whole.
    """
    missing = {one: one.parts(size) for one, size in batches.items() if keeper.found(one) is None}
    made = {
        part: latents for parts in missing.values() for part in parts if (latents := keeper.found(part)) is not None
    }
    left = [part for parts in missing.values() for part in parts if part not in made]
    if left:
        with crew_at(site) as crew:
            followed = _followed(crew, settings.anywhere(), Told.of(keeper.backend, keeper.latent_shape), left)
            advance = on_stage("following reference trajectories", len(left))
            for part, latents in followed:
                keeper.keep(part, latents)
                made[part] = latents
                advance()
    for one, parts in missing.items():
        keeper.keep(one, one.joined([made[part] for part in parts]))
        for part in parts:
            if part != one:
                keeper.drop(part)


def _followed(
    crew: Crew, settings: NetworkSettings, wanted: Told, parts: list[Reference]
) -> Iterator[tuple[Reference, Tensor]]:
    from ddt_accel.errors import MismatchError

    def misfit(told: Told) -> str | None:
        return None if told == wanted else "Its checkpoint, guide or latents are others than here."

    job = partial(ReferenceWork, settings)
    if (said := misfit(crew.first(job))) is not None:
        raise MismatchError(f"The first worker cannot follow trajectories: {said}")
    for _, part, latents in crew.work(job, iter(parts), len(parts), misfit):
        yield part, latents
