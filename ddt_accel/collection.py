"""Schedules at hand for a network: those that come with the package, and those of a workspace's folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddt_accel.artifacts import format_of
from ddt_accel.errors import ArtifactError
from ddt_accel.schedule import FORMAT, Schedule, shipped_schedules


@dataclass(frozen=True, kw_only=True)
class Named:
    """A schedule, by what it is called where a schedule is asked for."""

    name: str
    schedule: Schedule


def shipped_for(checkpoint_sha256: str | None, guide_sha256: str | None = None) -> list[Named]:
    """The shipped schedules that were made for these weights, and for this second network that guides them.

    Those that name no checkpoint are of any, and not among them.
    """
    if checkpoint_sha256 is None:
        return []
    every = (Named(name=name, schedule=Schedule.load(name)) for name in shipped_schedules())
    return [one for one in every if _are(one.schedule, checkpoint_sha256, guide_sha256)]


def folder_for(
    folder: Path, checkpoint_sha256: str | None, guide_sha256: str | None = None
) -> tuple[list[Named], list[str]]:
    """The schedules in a workspace's folder that a network can be run along, the workspace's own first; and what is to
    be said of files that cannot be read."""
    found: list[Named] = []
    damaged = []
    for path in _files(folder):
        try:
            if format_of(path) != FORMAT:
                continue
            schedule = Schedule.load(path)
        except ArtifactError as error:
            damaged.append(str(error))
            continue
        unnamed = schedule.checkpoint_sha256 is None and schedule.guide_sha256 == guide_sha256
        if unnamed or _are(schedule, checkpoint_sha256, guide_sha256):
            found.append(Named(name=str(path.relative_to(folder).with_suffix("")), schedule=schedule))
    return found, damaged


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.json"), key=lambda path: (path.name != "schedule.json", path.name))
    for inside in ("plans", "curve"):
        yield from sorted((folder / inside).glob("*.json"))


def _are(schedule: Schedule, checkpoint_sha256: str | None, guide_sha256: str | None) -> bool:
    return (schedule.checkpoint_sha256, schedule.guide_sha256) == (checkpoint_sha256, guide_sha256)
