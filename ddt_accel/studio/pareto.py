"""The plot of speed against fidelity: every stop a point that can be clicked, and reached by keyboard."""

from __future__ import annotations

from html import escape

from ddt_accel.studio.stops import Stop, Stops

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 720, 420, 56, 48, 16, 20


def plot(stops: Stops, chosen: int) -> str:
    """SVG in HTML. Points carry `data-stop`, their number on the slider; those without dB are listed below it."""
    exact = stops.original.exact_db is not None

    def db(stop: Stop) -> float | None:
        return stop.exact_db if exact else stop.db

    points = [(index, stop, value) for index, stop in enumerate(stops.stops) if (value := db(stop)) is not None]
    if not points:
        return '<p class="empty-plot">No fidelity is known yet. Measure it with <code>ddt-accel bench</code>.</p>'
    shares = [stop.share for _, stop, _ in points]
    low, high = 10 * (min(value for *_, value in points) // 10), max(value for *_, value in points) + 3
    most = max(shares) * 1.05

    def x(share: float) -> float:
        return _LEFT + share / most * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    lines = []
    for value in range(int(low), int(high) + 1, 5):
        lines.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value}</text>')
    for percent in range(0, int(100 * most) + 1, 20):
        lines.append(
            f'<text x="{x(percent / 100):.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{percent}</text>'
        )
    front = _front([(stop.share, value) for _, stop, value in points])
    path = " ".join(f"{x(share):.1f},{y(value):.1f}" for share, value in front)
    marks = "".join(
        _mark(index, stop, value, x(stop.share), y(value), index == chosen) for index, stop, value in points
    )
    aim = "the reference solution" if exact else "the original"
    others = [(index, stop) for index, stop in enumerate(stops.stops) if db(stop) is None]
    listed = "".join(
        f'<button type="button" data-stop="{index}">{escape(stop.name)}</button>' for index, stop in others
    )
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="group" aria-label="Speed against fidelity: '
        f'{len(points)} schedules. Choose a point to set the slider.">'
        f'<g class="axes">{"".join(lines)}'
        f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">cost, % of the original</text>'
        f'<text transform="translate(14 {_HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">dB to {aim}</text></g>'
        f'<polyline class="front" points="{path}"/>{marks}</svg>'
        '<p class="legend"><span class="key shared"></span> shared <span class="key fitted"></span> fitted '
        '<span class="key original"></span> the original</p>'
        + (f'<p class="unplaced">Not measured yet: {listed}</p>' if others else "")
    )


def _mark(index: int, stop: Stop, value: float, x: float, y: float, chosen: bool) -> str:
    kind = (
        "original"
        if stop.share == 1 and not stop.schedule.shares
        else "fitted"
        if stop.schedule.is_fitted
        else "shared"
    )
    said = f"{stop.name}: {100 * stop.share:.0f} % of the cost, {value:.1f} dB"
    return (
        f'<g class="point {kind}{" chosen" if chosen else ""}" role="button" tabindex="0" data-stop="{index}" '
        f'aria-pressed="{"true" if chosen else "false"}" aria-label="{escape(said)}"><title>{escape(said)}</title>'
        f'<circle class="reach" cx="{x:.1f}" cy="{y:.1f}" r="14"/><circle cx="{x:.1f}" cy="{y:.1f}" r="6"/></g>'
    )


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that nothing cheaper is as close as."""
    front: list[tuple[float, float]] = []
    for share, value in sorted(points):
        if not front or value > front[-1][1]:
            front.append((share, value))
    return front
