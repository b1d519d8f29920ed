"""Places that files are kept in: network file systems that refuse much, and folders that cannot be written to."""

from __future__ import annotations

import builtins
import errno
import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddt_accel import Calibration, Schedule
from ddt_accel.backends import choose
from ddt_accel.backends.manifest import Manifest
from ddt_accel.drawing.run_folder import RunFolder
from ddt_accel.exporting import export as exporting
from ddt_accel.exporting.onnx import write_network

CALIBRATE = ["--steps", 4, "--samples", 2, "--sensitivity-samples", 1, "--batch-size", 2]


@pytest.fixture
def odd(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace on CIFS, NTFS, gcsfuse: no chmod, no links, no locks, no fsync, no renaming over a file."""
    monkeypatch.setattr(exporting, "write_network", write_network)  # what tests share is made with locks

    def refuse(number: int) -> Callable[..., None]:
        def refused(*arguments: Any, **_: Any) -> None:
            raise OSError(number, os.strerror(number), str(arguments[0]))

        return refused

    rename = os.rename

    def not_over(source: Any, target: Any, **_: Any) -> None:
        if os.path.isfile(target):
            refuse(errno.EEXIST)(target)
        rename(source, target)

    for call in ("chmod", "fchmod", "lchown", "link", "symlink"):
        monkeypatch.setattr(os, call, refuse(errno.EPERM))
    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    monkeypatch.setattr(os, "rename", not_over)
    monkeypatch.setattr(os, "replace", not_over)
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    return workspace


def test_a_file_system_that_refuses_much(cli, odd, tmp_path) -> None:
    """Everything is written, over what was there."""
    for command in (
        ["calibrate", *CALIBRATE],
        ["solve", "--budget", 3],
        ["export", "--precision", "fp16"],
        *(["sample", "--images", images, "--npz", tmp_path / "samples.npz"] for images in (130, 140, 3, 2)),
    ):
        ran = cli(*command, "-w", odd)
        assert ran.code == 0, ran.err
    assert Calibration.load(odd / "calibration.safetensors").spec.num_steps == 4
    assert Schedule.load(odd / "schedule.json").budget == 3
    assert Manifest.load(odd / "export").precision == "fp16"
    assert len(np.load(tmp_path / "samples.npz")["arr_0"]) == 2
    run = RunFolder.load(odd / "images")
    assert (run.images, run.present()) == (140, 140)
    assert "000002-2.png" in ran.err  # is said to be left: who else writes there is not known without locks
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


@pytest.fixture
def read_only(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace in which every call that would change something fails; root is not stopped by permissions."""

    def guarded(call: Callable[..., Any], changes: Callable[..., bool]) -> Callable[..., Any]:
        def guard(path: Any, *arguments: Any, **named: Any) -> Any:
            inside = isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(workspace)
            if inside and changes(*arguments, **named):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return call(path, *arguments, **named)

        return guard

    for call in ("mkdir", "unlink", "rmdir", "rename", "replace", "truncate"):
        monkeypatch.setattr(os, call, guarded(getattr(os, call), lambda *_, **__: True))
    monkeypatch.setattr(os, "open", guarded(os.open, lambda flags, *_, **__: bool(flags & (os.O_RDWR | os.O_CREAT))))
    monkeypatch.setattr(
        builtins, "open", guarded(builtins.open, lambda mode="r", *_, **__: bool(set(mode) & set("wxa+")))
    )
    return workspace


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_read_only_workspace_draws(cli, read_only, tiny_model_path, tmp_path, monkeypatch) -> None:
    """And says what it cannot keep, before it measures what it will not keep."""
    before = content(read_only)
    for line in (
        ["sample", "-n", 2, "--out", tmp_path / "onnx"],
        ["sample", "-n", 2, "--out", tmp_path / "torch", "--backend", "torch"],
        ["inspect"],
        ["inspect", "--json"],
    ):
        place = [read_only] if line[0] == "inspect" else ["-w", read_only]
        ran = cli(*line, *place)
        assert ran.code == 0, ran.err
        assert "read-only" not in ran.err
    pictures = [np.asarray(Image.open(tmp_path / name / "000001-1.png")).astype(int) for name in ("onnx", "torch")]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1

    def measured(*_: object) -> tuple[dict[str, float], dict[str, str]]:
        print("MEASURED", file=sys.stderr)
        return {"torch": 1.0, "onnx": 2.0}, {}

    monkeypatch.setattr(choose, "measure_all", measured)
    again = ["--backend", "auto", "--model", tiny_model_path, "--latent-shape", "3,8,8"]
    ran = cli("sample", "-w", read_only, "-n", 2, "--out", tmp_path / "auto", *again)
    assert ran.code == 0, ran.err
    told, _, _ = ran.err.partition("MEASURED")
    assert "cannot be kept" in told
    assert "The model is not remembered" in told
    assert "read-only" in told
    assert (tmp_path / "auto" / "000001-1.png").read_bytes() == (tmp_path / "torch" / "000001-1.png").read_bytes()
    assert content(read_only) == before


def test_a_read_only_workspace_is_measured(cli, read_only, tmp_path) -> None:
    """Its report lies elsewhere, and what would have been kept there is said not to be."""
    before = content(read_only)
    ran = cli("bench", "-w", read_only, "-n", 2, "--curve-images", 2, "--out", tmp_path / "report")
    assert ran.code == 0, ran.err
    assert "What the parts take is not kept" in ran.err
    assert "read-only" in ran.err
    assert (tmp_path / "report" / "report.html").exists()
    assert content(read_only) == before


@pytest.mark.parametrize("line", [["calibrate", *CALIBRATE], ["export"], ["sample"], ["fit"], ["bench"]])
def test_what_must_write_says_so(cli, read_only, line: list[object]) -> None:
    ran = cli(*line, "-w", read_only)
    assert ran.code == 2, ran.err
    assert "the file system is read-only; choose another place" in ran.err
    assert "Traceback" not in ran.err
