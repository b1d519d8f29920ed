"""What a server grants each request, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass

from ddt_accel.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Raises ConfigError for limits that would let nothing through."""

    images: int = 16  # of a request
    body_bytes: int = 64 << 10
    queue: int = 256  # requests that wait or are drawn at a time; those beyond are refused
    timeout: float = 120.0  # seconds from a request's arrival to its answer

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--max-images", self.images, 1),
            ("--max-body", self.body_bytes, 64),
            ("--max-queue", self.queue, 1),
        ):
            if value < least:
                raise ConfigError(f"{option} is {value}; give at least {least}.")
        if not 0 < self.timeout < float("inf"):
            raise ConfigError(f"--timeout is {self.timeout:g}; give seconds, more than 0.")
