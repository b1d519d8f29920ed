"""Who draws the ranges of a run: this process, or workers on many devices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from ddt_accel.cli.console import say
from ddt_accel.cli.drawers import DrawerSettings, DrawerWork, OpenDrawer, Told
from ddt_accel.cli.workers import Tally
from ddt_accel.drawing import run as drawing
from ddt_accel.drawing.identity import differences

if TYPE_CHECKING:
    from ddt_accel.cli.console import Steps
    from ddt_accel.cluster.crew import Crew
    from ddt_accel.drawing.images import Images


class Hands(Protocol):
    """Who draws. `seconds` is what that has taken, what was compiled before not counted."""

    told: Told

    @property
    def seconds(self) -> float: ...

    @property
    def compile_seconds(self) -> float: ...

    def facts(self) -> dict[str, Any]:
        """What there is to say of each worker."""

    def draw(self, ranges: Iterator[range], most: int, bar: Steps) -> Iterator[Images]:
        """The images of `ranges`, at `most` so many of these, in any order."""


class Here:
    """This process."""

    def __init__(self, opened: OpenDrawer) -> None:
        self.opened, self.told = opened, opened.told()
        self._compiled_before = opened.compile_seconds

    @property
    def seconds(self) -> float:
        return self.opened.drawer.seconds - self.compile_seconds

    @property
    def compile_seconds(self) -> float:
        return self.opened.compile_seconds - self._compiled_before

    def facts(self) -> dict[str, Any]:
        return {}

    def draw(self, ranges: Iterator[range], most: int, bar: Steps) -> Iterator[Images]:
        return drawing.drawn_here(ranges, self.opened.drawer, bar.advance)


class Workers:
    """The workers of a crew, the first of which is ready when this is."""

    def __init__(self, crew: Crew, settings: DrawerSettings) -> None:
        self._crew, self._tally, self.seconds = crew, Tally(), 0.0
        self.told: Told = crew.first(partial(DrawerWork, settings))
        for line in self.told.said:
            say(line)
        self._settings = replace(settings, backend=self.told.backend)  # what the first has measured

    @property
    def compile_seconds(self) -> float:
        return self.told.compile_seconds

    def facts(self) -> dict[str, Any]:
        return {"workers": self._tally.facts()}

    def draw(self, ranges: Iterator[range], most: int, bar: Steps) -> Iterator[Images]:
        started = time.monotonic()
        for member, _, images in self._crew.work(partial(DrawerWork, self._settings), ranges, most, self._misfit):
            self._tally.add(member, len(images.rows))
            self.seconds = time.monotonic() - started
            bar.advance(len(images.rows), self._tally.text())
            yield images

    def _misfit(self, told: Told) -> str | None:
        differs = differences(told.identity.document(), self.told.identity.document())
        return f"Its images would be others: {'; '.join(differs)}." if differs else None
