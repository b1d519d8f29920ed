"""What the images of a run depend on, so that no two runs get mixed."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from ddt_accel.artifacts import checksum
from ddt_accel.schedule import Schedule

# As the fields are called in messages.
_WORDS = {
    "seed": "--seed",
    "labels": "--labels",
    "sampling": "the sampling",
    "schedule_sha256": "the schedule",
    "latents": "--latent-shape",
    "checkpoint_sha256": "the checkpoint",
    "guide_sha256": "the guide",
    "backend": "the backend",
    "decoder_sha256": "the decoder",
}


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """Two runs of the same identity draw the same images: in batches of the same size the same bytes, in others up to
    rounding. How many images, in which ranges and by whom they are drawn is no part of it."""

    seed: int
    labels: str  # as `Labels.described`
    sampling: str  # the schedule in words, for messages
    schedule_sha256: str
    latents: str  # their shape, C,H,W
    checkpoint_sha256: str | None
    guide_sha256: str | None
    backend: str  # as `backend_identity`
    decoder_sha256: str | None  # None for latents, and for a model that draws pixels

    def document(self) -> dict[str, Any]:
        return asdict(self)


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What differs between two documents of identities, in words.

    >>> differences({"seed": 0, "labels": "equal"}, {"seed": 1, "labels": "equal"})
    ['--seed is 0 there and 1 here']
    """
    names = [name for name in {**_WORDS, **there, **here} if there.get(name) != here.get(name)]
    if "sampling" in names and "schedule_sha256" in names:
        names.remove("schedule_sha256")  # words say more
    return [
        f"{_WORDS.get(name, name)} is {_shown(there.get(name))} there and {_shown(here.get(name))} here"
        for name in names
    ]


def schedule_identity(schedule: Schedule) -> dict[str, str]:
    """The fields of an identity that a schedule gives: all that is run, and not how it was found."""
    found = {"objective", "predicted_cost", "predicted_error", "fitted_on", "calibration_sha256"}
    run = {name: value for name, value in schedule.document().items() if name not in found}
    spec = schedule.spec
    low, high = spec.guidance_interval
    guidance = f"guidance {spec.guidance:g}" + (f" from {low:g} to {high:g}" if spec.guidance != 1 else "")
    return {
        "sampling": f"{spec.num_steps} steps of {spec.solver}, {guidance}, {schedule.budget} encoder runs",
        "schedule_sha256": checksum(run),
    }


def _shown(value: object) -> str:
    if value is None:
        return "none"
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1…", str(value))


def backend_identity(name: str) -> str:
    """A backend's name without how many threads it runs in.

    >>> backend_identity("ONNX Runtime, fp32, 2 threads")
    'ONNX Runtime, fp32'
    """
    return re.sub(r", \d+ threads?", "", name)
