"""What a server draws: its model's classes and pictures, and the schedules by which it does."""

from __future__ import annotations

import re
import secrets
from dataclasses import asdict, dataclass, field
from typing import Any

from ddt_accel import __version__
from ddt_accel.errors import ConfigError, listed
from ddt_accel.networks.class_names import number_of
from ddt_accel.serving.limits import Limits
from ddt_accel.serving.request import MOST_SEED, ImageRequest, RefusedError, shown

QUALITIES = ("draft", "standard", "high", "exact")
RESERVED = ("auto", *QUALITIES)  # what no schedule is called
_NEAR = 4  # names that a sentence proposes


@dataclass(frozen=True, kw_only=True)
class Served:
    """A schedule, as /v1/schedules tells of it; `cost` is that of an image over the unshared sampler's."""

    name: str
    sha256: str
    steps: int
    encoder_runs: int
    evaluations: int
    guidance: float
    cost: float
    predicted_db: float | None
    fitted: bool


@dataclass(frozen=True, kw_only=True)
class Order:
    """A request whose names are resolved: all that its images depend on. Seeds are one an image."""

    schedule: str
    schedule_sha256: str  # so that a replica which knows another one by that name does not answer
    label: int
    seeds: tuple[int, ...]
    previews: int = 0


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What replicas that are ready tell of themselves. `width` and `height` are those of a picture in pixels."""

    model: str
    backend: str
    num_classes: int
    class_names: tuple[str, ...] | None
    width: int
    height: int
    schedules: tuple[Served, ...]
    qualities: dict[str, str]  # draft, standard, high, exact → the name of a schedule
    batch_size: int
    said: tuple[str, ...] = field(default=(), compare=False)
    version: str = __version__

    def order(self, request: ImageRequest, limits: Limits) -> Order:
        """Raises RefusedError, with the field's name, for what this server does not draw."""
        if request.model not in (None, self.model):
            raise RefusedError(404, f"model is {shown(request.model)}; this server has {self.model}.", field="model")
        if request.n > limits.images:
            raise RefusedError(400, f"n is {request.n}; this server draws 1 to {limits.images} at a time.", field="n")
        own = f"{self.width}x{self.height}"
        if request.size.lower().replace("×", "x") not in ("auto", own):
            raise RefusedError(400, f"size is {shown(request.size)}; the model's pictures are {own}.", field="size")
        if request.response_format == "png" and (request.n != 1 or request.stream):
            raise RefusedError(
                400, "response_format is png, which is one image and no stream; ask for b64_json.",
                field="response_format",
            )  # fmt: skip
        if request.partial_images and not request.stream:
            raise RefusedError(
                400, f"partial_images is {request.partial_images} without a stream; give stream, too.",
                field="partial_images",
            )  # fmt: skip
        served = self._schedule(request.quality)
        last = MOST_SEED - request.n + 1
        seed = secrets.randbelow(last + 1) if request.seed is None else request.seed
        if seed > last:
            raise RefusedError(
                400, f"seed is {seed} for {request.n} images, which count up from there; give at most {last}.",
                field="seed",
            )  # fmt: skip
        return Order(
            schedule=served.name,
            schedule_sha256=served.sha256,
            label=self._label(request.prompt),
            seeds=tuple(range(seed, seed + request.n)),
            previews=request.partial_images,
        )

    def _schedule(self, quality: str) -> Served:
        by_name = {one.name: one for one in self.schedules}
        name = quality if quality in by_name else self.qualities.get("standard" if quality == "auto" else quality)
        if name is None:
            known = listed([*self.qualities, *by_name], most=len(QUALITIES) + _NEAR)
            raise RefusedError(
                400, f"quality is {shown(quality)}; give {known}, as /v1/schedules has them.", field="quality"
            )
        return by_name[name]

    def _label(self, prompt: str | int) -> int:
        """The class of a name, whatever its case, or of a number, as text, too."""
        text = str(prompt).strip()
        meant = int(text) if re.fullmatch("[0-9]{1,9}", text) else text
        try:
            return number_of(meant, self.num_classes, self.class_names)
        except ConfigError:
            named = f", or a name such as {listed(self.class_names, most=_NEAR)}" if self.class_names else ""
            raise RefusedError(
                400, f"prompt is {shown(prompt)}; give the number of a class, 0 to {self.num_classes - 1}{named}.",
                field="prompt",
            ) from None  # fmt: skip

    def models(self) -> dict[str, Any]:
        """The document of `GET /v1/models`."""
        return {
            "object": "list",
            "data": [
                {
                    "id": self.model,
                    "object": "model",
                    "owned_by": "ddt-accel",
                    "size": f"{self.width}x{self.height}",
                    "classes": self.num_classes,
                    "class_names": self.class_names and list(self.class_names),
                    "backend": self.backend,
                }
            ],
        }

    def shelf(self) -> dict[str, Any]:
        """The document of `GET /v1/schedules`."""
        return {
            "object": "list",
            "data": [{"id": one.name, "object": "schedule", **_facts(one)} for one in self.schedules],
            "qualities": self.qualities,
        }


def _facts(one: Served) -> dict[str, Any]:
    return {name: value for name, value in asdict(one).items() if name != "name"}
