"""Mistakes in the words of the command line: options alone, and commands that can be copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import assert_sentence

from ddt_accel import Schedule
from ddt_accel.cli.options import DEFAULT_WORKSPACE
from ddt_accel.cli.sentences import spoken


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Make one with `ddt-accel solve`.", "Make one with `ddt-accel solve -w 'my run'`."),
        (
            "By `ddt-accel calibrate --guidance 2`, then `ddt-accel solve`.",
            "By `ddt-accel calibrate --guidance 2 -w 'my run'`, then `ddt-accel solve -w 'my run'`.",
        ),
        ("With `ddt-accel fit -w other`.", "With `ddt-accel fit -w other`."),
        ("Unpack it: `tar xf x`.", "Unpack it: `tar xf x`."),
        ("`ddt-accel train --out run` anew.", "`ddt-accel train --out run` anew."),  # has no workspace
        ("--weights raw takes it (weights='raw' in Python).", "--weights raw takes it."),
        ("Give --config X (in Python config=, the file or a mapping). Or not.", "Give --config X. Or not."),
        ("A file (of 3 bytes) is no model.", "A file (of 3 bytes) is no model."),
    ],
)
def test_sentences(said: str, expected: str) -> None:
    assert spoken(said, Path("my run")) == expected
    assert spoken("`ddt-accel solve`", DEFAULT_WORKSPACE) == spoken("`ddt-accel solve`", None) == "`ddt-accel solve`"


def test_what_is_missing_is_made_where_it_is_missing(cli, solved) -> None:
    exporting = f"make one with `ddt-accel export -w {solved}`"
    assert_sentence(cli("sample", "--backend", "onnx", "-w", solved), exporting)
    (solved / "schedule.json").unlink()
    assert_sentence(cli("bench", "-w", solved, "--backend", "torch"), f"make one with `ddt-accel solve -w {solved}`")
    # Six steps: where ten encoder runs would be more than there are, the usual number is a fifth.
    told = cli("status", "-w", solved).out
    assert f"ddt-accel solve --budget 1 -w {solved}" in told
    assert cli("solve", "-w", solved).code == 0
    assert Schedule.load(solved / "schedule.json").budget == 1
    (solved / "calibration.safetensors").unlink()
    assert_sentence(cli("solve", "-w", solved), f"make one with `ddt-accel calibrate -w {solved}`")


def test_names_of_python_stay_in_python(cli, reference, tmp_path) -> None:
    shutil.copy(reference.checkpoint, tmp_path / "model.ckpt")
    line = ["calibrate", "--model", tmp_path / "model.ckpt", "-w", tmp_path / "run"]
    ran = cli(*line)
    assert_sentence(ran, "give --config FILE.yaml.")
    assert "Python" not in ran.err


def test_without_an_export_pytorch_draws(cli, solved, tiny_model_path) -> None:
    """What was asked for comes; that it is not what is the default, is said."""
    ran = cli("sample", "-n", 2, "-w", solved, "--model", tiny_model_path)
    assert ran.code == 0, ran.err
    assert f"{solved} has no export: drawing by PyTorch. --backend auto" in " ".join(ran.err.split())
    assert "bench --backend torch" in ran.out
    assert len(list((solved / "samples").glob("0*.png"))) == 2
