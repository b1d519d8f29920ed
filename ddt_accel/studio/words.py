"""What the page says, of schedules and of results."""

from __future__ import annotations

import math
from html import escape

from ddt_accel.offering import EXACT
from ddt_accel.studio.stops import Stop, Stops

FITTED = "Fitted to the reference solution, not to the original, and may end closer to it than the original does."


def told(stop: Stop, stops: Stops) -> str:
    """HTML of a stop of the slider: what runs, what it costs, and how close it should come."""
    facts = [("encoder runs", str(stop.schedule.budget)), ("steps", str(stop.steps))]
    facts.append(("of the cost", f"{100 * stop.share:.0f} %"))
    if stop.seconds is not None:
        facts.append(("a picture", seconds(stop.seconds)))
    how = "measured" if stop.measured else "predicted"
    if stop.db is not None:
        facts.append((f"to the original, {how}", f"{stop.db:.1f} dB"))
    exact, own = stop.exact_db, stops.original.exact_db
    if exact is not None and stop.schedule.is_fitted:
        beside = f"; the original: {own:.1f}" if own is not None else ""
        facts.append((f"to the reference solution, measured{beside}", f"{exact:.1f} dB"))
    listed = "".join(f"<li><b>{escape(value)}</b> {escape(name)}</li>" for name, value in facts)
    note = ""
    if stop.name == EXACT:
        note = "The original: the encoder runs at every step."
    elif stop.schedule.is_fitted:
        note = FITTED
    elif stop.db is None:
        note = "How close it comes is not known yet: draw. ddt-accel optimize finds the best for this network."
    return (
        f'<div class="stop" role="status"><strong>{escape(stop.name)}</strong><ul>{listed}</ul>'
        + (f"<p>{escape(note)}</p>" if note else "")
        + "</div>"
    )


def seconds(value: float) -> str:
    """A time as people read it.

    >>> seconds(0.0312), seconds(0.45), seconds(12.3)
    ('31 ms', '450 ms', '12.3 s')
    """
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def decibels_told(value: float) -> str:
    """The dB between two sets of pictures.

    >>> decibels_told(31.25), decibels_told(math.inf)
    ('31.2 dB', 'identical')
    """
    return "identical" if math.isinf(value) else f"{value:.1f} dB"
