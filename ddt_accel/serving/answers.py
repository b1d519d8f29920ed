"""What goes from replicas to the server: pictures, previews, or why there are none."""

from __future__ import annotations

from dataclasses import dataclass

from ddt_accel.errors import DDTAccelError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one run along a schedule was."""

    images: int
    filled: int  # its size in the network
    evaluations: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The pictures of an order as PNG."""

    pngs: tuple[bytes, ...]
    batches: tuple[Batch, ...]  # that began with one of them, so that each batch is in one answer
    drawing: float  # seconds of all batches that they were in


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One picture on its way: image `index` of the order, its preview `number`."""

    index: int
    number: int
    png: bytes


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Why there are no pictures, in a sentence; `elsewhere` is whether another replica may have them."""

    text: str
    elsewhere: bool = False
    error: DDTAccelError | None = None
