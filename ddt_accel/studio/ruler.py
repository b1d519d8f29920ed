"""The steps of a trajectory as a ruler: tall marks are encoder runs, those that are done are lit."""

from __future__ import annotations

from html import escape

from ddt_accel.schedule import Schedule


def ruler(schedule: Schedule, title: str, *, done: int = 0) -> str:
    """HTML of the ruler, `done` of whose evaluations are lit; told in words to a screen reader."""
    total, runs = schedule.spec.num_evaluations, set(schedule.refresh_steps)
    marks = "".join(f"<i{_kind(k in runs, k < done)}></i>" for k in range(total))
    said = f"{title}: {total} steps, the encoder runs at {len(runs)} of them"
    if len(runs) < total:
        said += f": {', '.join(str(k + 1) for k in sorted(runs))}"
    count = f"{len(runs)} of {total}"
    return (
        f'<div class="ruler" role="img" aria-label="{escape(said)}"><span class="ruler-title">{escape(title)}</span>'
        f'<span class="marks">{marks}</span><span class="ruler-count">{count}</span></div>'
    )


def _kind(run: bool, lit: bool) -> str:
    names = " ".join(name for name, holds in (("run", run), ("lit", lit)) if holds)
    return f' class="{names}"' if names else ""
