"""One visitor's wish, from the controls to both columns: sentences where it cannot be, frames while it runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from ddt_accel.errors import ConfigError, DDTAccelError
from ddt_accel.sampling.labels import Labels
from ddt_accel.studio.figures import figure
from ddt_accel.studio.race import MOST_PICTURES, Frame, Pictures, Race, decibels, difference
from ddt_accel.studio.ruler import ruler
from ddt_accel.studio.stops import Stop, Stops
from ddt_accel.studio.words import decibels_told, seconds

EVERY_CLASS = -1  # in the place of a class: all of them in turn
ORIGINAL, SCHEDULE, DIFFERENCE = "The original", "Along the schedule", "Difference, four times as strong"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the controls say, checked as it stands there: raises ConfigError with a sentence for what cannot be."""

    label: int
    pictures: int
    seed: int
    stop: Stop
    guidance: float | None

    @classmethod
    def of(
        cls,
        stops: Stops,
        num_classes: int,
        label: object,
        pictures: object,
        seed: object,
        stop: object,
        guidance: object,
    ) -> Wish:
        numbers = {"class": label, "number of pictures": pictures, "seed": seed, "place on the slider": stop}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
                raise ConfigError(f"The {name} is {'empty' if value is None else value}; give a whole number.")
        chosen, count, start, place = (int(value) for value in numbers.values())  # type: ignore[call-overload]
        if not EVERY_CLASS <= chosen < num_classes:
            raise ConfigError(f"The class is {chosen}; give one from 0 to {num_classes - 1}.")
        if not 1 <= count <= MOST_PICTURES:
            raise ConfigError(f"The number of pictures is {count}; give 1 to {MOST_PICTURES}.")
        if not 0 <= start < 2**32:
            raise ConfigError(f"The seed is {start}; give a whole number from 0 to {2**32 - 1}.")
        if not 0 <= place < len(stops.stops):
            raise ConfigError(f"The slider has no stop {place}; give 0 to {len(stops.stops) - 1}.")
        weight = float(guidance) if isinstance(guidance, int | float) else None
        one = stops.stops[place]
        return cls(label=chosen, pictures=count, seed=start, stop=one, guidance=weight if one.takes_guidance else None)

    def labels(self, num_classes: int) -> list[int]:
        turn = range(num_classes) if self.label == EVERY_CLASS else [self.label]
        every = Labels(num_classes=num_classes, in_turn=tuple(turn))
        labels: list[int] = every.of(seed=self.seed, indices=range(self.pictures)).tolist()
        return labels


@dataclass(frozen=True, kw_only=True)
class View:
    """What the page shows at a moment, as HTML."""

    status: str
    rulers: str
    columns: str
    pair: tuple[Pictures, Pictures, list[str]] | None = None  # both columns at their end, and what is on them
    failed: bool = False  # so that there is no such pair any more


class Visits:
    """Answers visitors, one after the other; nothing of one is kept for another."""

    def __init__(self, race: Race, stops: Stops, names: Sequence[str] | None) -> None:
        self.race, self.stops, self.names = race, stops, names
        self.num_classes = race.backend.config.num_classes

    def called(self, label: int) -> str:
        return self.names[label].partition(",")[0] if self.names else f"class {label}"

    def rulers(self, place: object, done: tuple[int, int] = (0, 0)) -> str:
        """Of the original and of the stop on the slider."""
        stop = self.stops.at(place)
        return ruler(self.stops.original.schedule, "original", done=done[0]) + ruler(
            stop.schedule, "schedule", done=done[1]
        )

    def drawing(
        self, label: object, pictures: object, seed: object, place: object, guidance: object
    ) -> Iterator[View | None]:
        """What to show, after every step; None where nothing has changed. Mistakes are shown as sentences."""
        try:
            wish = Wish.of(self.stops, self.num_classes, label, pictures, seed, place, guidance)
            yield from self._run(wish, int(place) if isinstance(place, int | float) else 0)
        except DDTAccelError as error:
            yield self.failed(str(error), place)
        except Exception:
            _log.exception("A visitor's pictures could not be drawn")
            yield self.failed("Something went wrong that should not; the server's log says what.", place)

    def failed(self, sentence: str, place: object) -> View:
        status = f'<p class="error" role="alert">{escape(sentence)}</p>'
        return View(status=status, rulers=self.rulers(place), columns=self.columns([], None, None), failed=True)

    def _run(self, wish: Wish, place: int) -> Iterator[View | None]:
        labels = wish.labels(self.num_classes)
        captions = [f"{self.called(label)}, picture {k + 1}" for k, label in enumerate(labels)]
        original: Frame | None = None
        mine: Frame | None = None
        for frame in self.race.drawn(self.stops.original.guided(wish.guidance), labels, wish.seed):
            original = frame
            yield self._view(captions, wish, place, original, None)
        for frame in self.race.drawn(wish.stop.guided(wish.guidance), labels, wish.seed):
            mine = frame
            yield self._view(captions, wish, place, original, mine)

    def _view(
        self, captions: list[str], wish: Wish, place: int, original: Frame | None, mine: Frame | None
    ) -> View | None:
        latest = mine or original
        if latest is None or latest.pictures is None:
            return None
        done = (original.done if original else 0, mine.done if mine else 0)
        pair = None
        if original is not None and mine is not None and mine.ended:
            assert original.pictures is not None
            assert mine.pictures is not None
            pair = original.pictures, mine.pictures, captions
            status = f'<p role="status">Both from the noise of seed {wish.seed}.</p>'
        else:
            what = ORIGINAL if mine is None else SCHEDULE
            status = f"<p>{what}: step {latest.done} of {latest.total}</p>"
        return View(
            status=status, rulers=self.rulers(place, done), columns=self.columns(captions, original, mine), pair=pair
        )

    def columns(
        self, captions: list[str], original: Frame | None, mine: Frame | None, apart: Pictures | None = None
    ) -> str:
        """HTML of both columns, and of a third with the difference."""
        count = max(1, len(captions))
        captions = captions or [""]
        figures = []
        for kind, title, frame in (("original", ORIGINAL, original), ("schedule", SCHEDULE, mine)):
            numbers = []
            if frame is not None and frame.ended:
                numbers.append(("a picture", seconds(frame.seconds / count)))
            if kind == "schedule" and original is not None and mine is not None and mine.ended:
                assert original.pictures is not None
                assert mine.pictures is not None
                numbers.append(("speed-up", f"{original.seconds / mine.seconds:.1f}×"))
                numbers.append(("to the original", decibels_told(decibels(mine.pictures, original.pictures))))
            state = f"{kind} {'waiting' if frame is None else 'done' if frame.ended else 'drawing'}"
            figures.append(figure(title, captions, None if frame is None else frame.pictures, numbers, state))
        return f'<div class="columns">{"".join(figures)}</div>'

    def apart(self, pair: tuple[Pictures, Pictures, list[str]] | None, wanted: bool) -> str:
        """HTML of the difference picture, where it is wanted and there are two to compare."""
        if not wanted:
            return ""
        if pair is None:
            return "<p>There is nothing to compare yet; draw first.</p>"
        original, mine, captions = pair
        named = [f"difference at {caption}" for caption in captions]
        return figure(DIFFERENCE, named, difference(mine, original), [], "difference done")
