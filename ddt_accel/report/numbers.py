"""report.json and compare.json, as they are read again: what was measured, schedule by schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ddt_accel.artifacts import read_json
from ddt_accel.errors import ArtifactError

FILE_NAME = "report.json"
FORMAT, VERSION = "ddt-accel report", 1
COMPARISON_NAME = "compare.json"
COMPARISON_FORMAT, COMPARISON_VERSION = "ddt-accel comparison", 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One schedule as it was measured; `seconds` are per image, the dB means over images.

    `to_unshared` is None where every image is identical, or in latent space; `to_reference` where it was not measured.
    `schedule_sha256` is the checksum of what the schedule's file says, None in reports of earlier versions.
    """

    name: str
    refresh_steps: tuple[int, ...]
    num_steps: int
    num_evaluations: int
    seconds: float
    speedup: float
    to_unshared: float | None
    to_reference: float | None
    schedule_sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The numbers of a report that people look for."""

    num_images: int
    checkpoint_sha256: str | None  # None in reports of earlier versions
    rows: tuple[Row, ...]
    headline: str | None  # the row that it begins with; None in reports of earlier versions
    conditions: Mapping[str, str]


def read_report(path: Path) -> Report:
    """Raises ArtifactError for what is no report, or lacks something."""
    content = read_json(path, FORMAT, VERSION)
    try:
        return Report(
            num_images=int(content["num_images"]),
            checkpoint_sha256=content.get("checkpoint_sha256"),
            rows=tuple(_row(m, content.get("limits_db", {})) for m in content["measurements"]),
            headline=content.get("headline"),
            conditions={str(key): str(value) for key, value in content["conditions"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is not a usable report (it lacks {error}); run `ddt-accel bench` again.") from None


def _row(measured: Mapping[str, Any], limits: Mapping[str, list[float | None]]) -> Row:
    psnr = measured.get("psnr")
    ends = [value for value in limits.get(measured["name"], ()) if value is not None]
    return Row(
        name=str(measured["name"]),
        refresh_steps=tuple(map(int, measured["refresh_steps"])),
        num_steps=int(measured["num_steps"]),
        num_evaluations=int(measured["num_evaluations"]),
        seconds=float(measured["seconds"]),
        speedup=float(measured["speedup"]),
        to_unshared=float(psnr["mean"]) if psnr else None,
        to_reference=fmean(ends) if ends else None,
        schedule_sha256=measured.get("schedule_sha256"),
    )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The numbers of a comparison that people look for: mean dB of every method by cost, to what all aimed at."""

    num_images: int
    aim: str
    means: Mapping[float, Mapping[str, float]]
    conditions: Mapping[str, str]


def read_comparison(path: Path) -> Compared:
    """Raises ArtifactError for what is no comparison, or lacks something."""
    content = read_json(path, COMPARISON_FORMAT, COMPARISON_VERSION)
    try:
        aim = str(content["aim"])
        return Compared(
            num_images=int(content["num_images"]),
            aim=aim,
            means={
                float(contest["cost"]): {str(row["name"]): fmean(row[f"to_{aim}_db"]) for row in contest["rows"]}
                for contest in content["contests"]
            },
            conditions={str(key): str(value) for key, value in content["conditions"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is not a usable comparison (it lacks {error}); run `ddt-accel compare` again."
        ) from None
