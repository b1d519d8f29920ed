"""Options of the commands that work on several devices, and what is told of their workers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddt_accel.cli.console import say

if TYPE_CHECKING:
    from ddt_accel.cluster.crew import Crew, Member
    from ddt_accel.cluster.instance import Site
    from ddt_accel.evaluation.converged import Reference
    from ddt_accel.sampling.noise import ImageRange

WorkersOption = Annotated[
    str | None,
    typer.Option(
        "--workers",
        help="Processes that share the work: auto (one a GPU; on a CPU one for 4 cores) or a number. Needs the extra "
        "cluster.",
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option("--ray", help="Work on a Ray cluster that is running: auto, or HOST:PORT of its head."),
]
CoresOption = Annotated[
    int | None, typer.Option("--cpus-per-worker", min=1, help="Cores of each worker; of --workers and --ray.")
]

_EACH = 8  # workers that are told one by one, at most


def site_of(workers: str | None, address: str | None, cores: int | None, device: str) -> Site | None:
    """Where workers are to be; None where this process works itself."""
    from ddt_accel.cluster.instance import Site
    from ddt_accel.errors import ConfigError

    if workers is None and address is None:
        if cores is not None:
            raise ConfigError(
                "--cpus-per-worker is of --workers and --ray, and there are none; give one, or --threads."
            )
        return None
    if workers not in (None, "auto") and not workers.isdecimal():
        raise ConfigError(f"--workers is {workers!r}; give auto, or how many.")
    if device.lower() not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {device}, and each worker gets a device of its own; give cpu or cuda.")
    return Site(
        address=address,
        workers=None if workers in (None, "auto") else int(workers),
        gpu=device.lower() == "cuda",
        cores=cores,
    )


@contextmanager
def crew_at(site: Site) -> Iterator[Crew]:
    """Workers whose units are some images."""
    from ddt_accel.cluster.crew import crew

    with crew(site, say, _words) as found:
        say(f"{found.size} worker{'s' * (found.size > 1)} {site.words} ...")
        yield found


def _words(unit: range | ImageRange | Reference) -> str:
    if isinstance(unit, range):
        return f"images {unit.start} to {unit.stop - 1}"
    from ddt_accel.sampling.noise import ImageRange

    images = unit if isinstance(unit, ImageRange) else unit.images
    return f"images {images.first} to {images.stop - 1} of seed {images.seed}"


class Tally:
    """How many images each worker has done, and how fast."""

    def __init__(self) -> None:
        self._images: dict[int, int] = {}
        self._members: dict[int, Member] = {}
        self._seconds: dict[int, float] = {}

    def add(self, member: Member, images: int) -> None:
        self._members[member.number] = member
        self._images[member.number] = self._images.get(member.number, 0) + images
        self._seconds[member.number] = time.monotonic() - member.since

    def rates(self) -> Mapping[int, float]:
        """Images a second, by worker, since it was ready."""
        return {number: self._images[number] / max(self._seconds[number], 1e-9) for number in sorted(self._images)}

    def text(self) -> str:
        """The rates of several, for a line about all."""
        rates = list(self.rates().values())
        if len(rates) < 2:
            return ""
        if len(rates) > _EACH:
            return f"{len(rates)} workers, {min(rates):.3g} to {max(rates):.3g} each"
        return " + ".join(f"{rate:.3g}" for rate in rates)

    def facts(self) -> list[dict[str, Any]]:
        return [
            {"worker": number, "place": self._members[number].place, "images": self._images[number],
             "images_per_second": rate}
            for number, rate in self.rates().items()
        ]  # fmt: skip
