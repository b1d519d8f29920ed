"""Samples as files: against NumPy's own npz, in constant memory, and nothing but samples among samples."""

from __future__ import annotations

import io
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from ddt_accel import SamplingSpec, Schedule, draw_noise, draw_step_noise, load_model, sample
from ddt_accel.drawing import pngs
from ddt_accel.drawing.images import Images
from ddt_accel.drawing.npz_rows import NpzRows
from ddt_accel.drawing.plain_folder import SampleWriter
from ddt_accel.errors import ArtifactError, ConfigError
from ddt_accel.evaluation.fidelity import to_uint8
from ddt_accel.report.pictures import COLUMNS, MARGIN, captioned_sheet, captions_of, cell, legible


def pictures(count: int, side: int = 8, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) - 1


def images(samples: torch.Tensor, first: int = 0, classes: int = 2, *, pixels: bool = True) -> Images:
    """Samples of classes in turn, as they are drawn."""
    rows = to_uint8(samples) if pixels else samples.numpy()
    return Images(first=first, rows=rows, labels=np.arange(first, first + len(samples)) % classes)


def written(folder: Path, count: int, npz: Path | None = None, **settings: bool) -> SampleWriter:
    settings = {"pixels": True} | settings
    with SampleWriter(folder, npz, count=count, **settings) as writer:
        for start in range(0, count, 4):
            writer.add(images(pictures(count)[start : start + 4], start, pixels=settings["pixels"]))
    return writer


def names(indices: Iterable[int]) -> list[str]:
    """As `images` of two classes are called."""
    return [f"{index:06d}-{index % 2}.png" for index in indices]


@given(
    array=st.sampled_from([np.uint8, np.float32]).flatmap(
        lambda kind: arrays(kind, st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(1, 4)))
    ),
    batch=st.integers(1, 8),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_make_the_array_that_numpy_would_write(tmp_path: Path, array: np.ndarray, batch: int) -> None:
    path = tmp_path / "x.npz"
    with NpzRows(path, len(array)) as rows:
        for start in range(0, len(array), batch):
            rows.write(array[start : start + batch])
    whole = io.BytesIO()
    np.savez(whole, arr_0=array)
    whole.seek(0)
    with np.load(path) as read, np.load(whole) as expected:
        assert (list(read), read["arr_0"].dtype) == (["arr_0"], array.dtype)
        np.testing.assert_array_equal(read["arr_0"], expected["arr_0"])
    assert [one.name for one in path.parent.iterdir()] == ["x.npz"]


def test_rows_in_any_order_of_memory(tmp_path: Path) -> None:
    """Pictures come as views of channels first."""
    array = np.arange(60, dtype=np.uint8).reshape(5, 3, 4).transpose(0, 2, 1)
    with NpzRows(tmp_path / "x.npz", 5) as rows:
        rows.write(array[:1])
        rows.write(array[1:])
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["arr_0"], array)


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times as many are 4.6 MB more; PNGs aside, only the npz counts."""
    monkeypatch.setattr(pngs, "png", lambda pixels: b"")
    monkeypatch.setattr(pngs, "write_atomic", lambda path, data: None)
    batch, peaks = images(pictures(50, side=16)), []
    for count in (500, 2000, 8000):
        tracemalloc.start()
        with SampleWriter(tmp_path, tmp_path / f"{count}.npz", count=count, pixels=True) as writer:
            for _ in range(count // 50):
                writer.add(batch)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert np.load(tmp_path / "8000.npz", mmap_mode="r")["arr_0"].nbytes == 8000 * 16 * 16 * 3
    assert peaks[2] < peaks[1] + 200_000


def test_a_disk_that_fills_up_leaves_what_was_finished(tmp_path: Path) -> None:
    """A limit on file sizes stands in for it: the earlier npz and the pictures stay, and the sentence names the npz."""
    written(tmp_path / "s", 2, tmp_path / "x.npz")
    before = (tmp_path / "x.npz").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ArtifactError, match=r"x\.npz could not be written: files of this size"):
            written(tmp_path / "s", 400, tmp_path / "x.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "x.npz").read_bytes() == before
    assert len(list((tmp_path / "s").glob("*.png"))) > 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "x.npz"]


def test_more_than_the_disk_has_is_refused_with_the_first_batch(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"will take 1,920,000\.00 GB, and .* GB are free there"),
        SampleWriter(tmp_path / "s", tmp_path / "x.npz", count=10**13, pixels=True) as writer,
    ):
        writer.add(images(pictures(2)))
    assert list(tmp_path.rglob("*")) == []


def test_what_is_interrupted_keeps_its_pictures(tmp_path: Path) -> None:
    written(tmp_path / "s", 2, tmp_path / "x.npz")
    before = (tmp_path / "x.npz").read_bytes()
    writer = SampleWriter(tmp_path / "s", tmp_path / "x.npz", count=9, pixels=True)

    def interrupted() -> None:
        with writer:
            writer.add(images(pictures(5)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert writer.kept() == (
        f"5 of 9 pictures are in {tmp_path / 's'}; {tmp_path / 'x.npz'} holds all or none, and was not written."
    )
    assert len(list((tmp_path / "s").iterdir())) == 5
    assert (tmp_path / "x.npz").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "x.npz"]


def test_rows_that_are_missing_make_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 rows and has 2"), NpzRows(tmp_path / "x.npz", 3) as rows:
        rows.write(np.zeros((2, 1)))
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_samples_among_samples(tmp_path: Path) -> None:
    writer = written(tmp_path / "s", 6, tmp_path / "x.npz")
    sheet = writer.write_sheet(["ant", "bee"])
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == names(range(6))
    assert sheet == tmp_path / "s-contact-sheet.png"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s-contact-sheet.png", "x.npz"]
    for k, (name, image) in enumerate(zip(names(range(6)), to_uint8(pictures(6)), strict=True)):
        assert (np.asarray(Image.open(tmp_path / "s" / name)) == image).all()
        assert (np.load(tmp_path / "x.npz")["arr_0"][k] == image).all()
    assert np.load(tmp_path / "x.npz")["arr_1"].tolist() == [0, 1] * 3
    assert writer.files() == [*(tmp_path / "s" / name for name in names(range(6))), tmp_path / "x.npz"]


def test_latents_are_one_file(tmp_path: Path) -> None:
    writer = written(tmp_path / "s", 5, pixels=False)
    assert writer.write_sheet(None) is None
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["latents.npz"]
    np.testing.assert_array_equal(np.load(tmp_path / "s" / "latents.npz")["arr_0"], pictures(5).numpy())
    with pytest.raises(ConfigError, match="--decoder"):
        SampleWriter(tmp_path / "s", tmp_path / "x.npz", count=5, pixels=False)


OTHERS = ["2024-holiday.png", "0001.png", "000001-x.png", "000001.jpg", "notes.txt", "a000001.png"]


@pytest.mark.parametrize("ours", [True, False])
def test_only_our_own_samples_are_removed_and_only_from_our_folder(tmp_path: Path, ours: bool) -> None:
    written(tmp_path, 7)
    for name in (*OTHERS, "latents.npz", "000001.png"):  # the last as earlier versions called them
        (tmp_path / name).write_bytes(b"mine")
    writer = written(tmp_path, 3, ours=ours)
    left = {path.name for path in tmp_path.iterdir()} - set(names(range(3)))
    later = ["000001.png", *names(range(3, 7))]
    assert left == set(OTHERS if ours else [*OTHERS, "latents.npz", *later])
    assert writer.left() == ([] if ours else later)


def test_what_fails_before_its_first_picture_removes_nothing(tmp_path: Path) -> None:
    written(tmp_path, 3)
    with pytest.raises(KeyboardInterrupt), SampleWriter(tmp_path, None, count=2, pixels=True, ours=True):
        raise KeyboardInterrupt
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("side", "shown"), [(8, 96), (28, 112), (32, 96), (64, 128), (256, 256), (512, 256)])
def test_pictures_on_a_sheet_can_be_seen(side: int, shown: int) -> None:
    image = to_uint8(pictures(1, side))[0]
    drawn = cell(image)
    assert drawn.shape == (shown, shown, 3)
    if side <= shown:
        assert (drawn == image.repeat(shown // side, 0).repeat(shown // side, 1)).all()


def test_a_column_a_class_with_its_name_above() -> None:
    cells = [np.full((96, 96, 3), 10 * k, dtype=np.uint8) for k in range(8)]
    sheet = captioned_sheet(cells, ["ant", "bee", "cat"])
    assert sheet.shape[1] == 3 * 96 + 4 * MARGIN
    below = sheet.shape[0] - 3 * (96 + MARGIN)
    for k, pixels in enumerate(cells):
        top, left = below + k // 3 * (96 + MARGIN), MARGIN + k % 3 * (96 + MARGIN)
        assert (sheet[top : top + 96, left : left + 96] == pixels).all()
    heads = [sheet[: below - 1, MARGIN + k * (96 + MARGIN) :][:, :96] for k in range(3)]
    assert all((head < 128).any() for head in heads)
    assert (heads[0] != heads[1]).any()
    assert (sheet[below + 2 * (96 + MARGIN) :, MARGIN + 2 * (96 + MARGIN) :] == 255).all()  # there is no ninth


def test_many_classes_have_their_names_one_by_one() -> None:
    cells = [np.zeros((96, 96, 3), dtype=np.uint8)] * 9
    names = [f"class {k}" for k in range(40)]
    sheet = captioned_sheet(cells, names)
    assert sheet.shape[1] == 3 * 96 + 4 * MARGIN  # three by three, not forty columns
    pitch = (sheet.shape[0] - MARGIN) // 3
    captions = [sheet[MARGIN + row * pitch :][: pitch - 96 - MARGIN] for row in range(3)]
    assert all((caption < 255).any() for caption in captions)
    assert (captions[0] != captions[1]).any()
    assert captioned_sheet(cells * 100, names).shape[1] == COLUMNS * (96 + MARGIN) + MARGIN


@pytest.mark.parametrize(
    ("labels", "captions"),
    [([0, 1, 0, 1, 0], ["a", "b"]), ([2, 2, 2], ["c"]), ([0, 1, 2], ["a", "b", "c"]), ([0, 1, 0, 0], ["a", "b", "a"])],
)
def test_captions_come_once_a_turn(labels: list[int], captions: list[str]) -> None:
    """Whatever labels were: taken over and over, they are those of the pictures."""
    found = captions_of(labels, ["a", "b", "c"])
    assert [found[index % len(found)] for index in range(len(labels))] == ["abc"[label] for label in labels]
    assert len(found) == len(captions)


def test_a_long_name_stays_within_its_column() -> None:
    cells = [np.zeros((96, 96, 3), dtype=np.uint8)] * 2
    sheet = captioned_sheet(cells, ["a very long name of a class, with another name", ""])
    assert (sheet[:16, 96 + 2 * MARGIN :] == 255).all()


def test_names_that_the_font_does_not_have_are_numbers(tmp_path: Path) -> None:
    assert legible("Äpfel, ковёр, γάτα")
    assert not legible("猫")
    writer = written(tmp_path / "s", 4)
    made = []
    for classes in (["ant", "猫"], ["ant", "1"], ["ant", "bee"]):
        path = writer.write_sheet(classes)
        assert path is not None
        made.append(path.read_bytes())
    assert made[0] == made[1] != made[2]


def test_the_command_draws_what_the_function_draws(cli, workspace, tiny_model_path, tmp_path) -> None:
    """Bit for bit, in batches that do not divide the number; a class in turn, the noise of one seed."""
    schedule = Schedule.uniform(SamplingSpec(num_steps=5, solver="sde", guidance=2.0), 3)
    schedule.save(tmp_path / "sde.json")
    ran = cli("sample", "-w", workspace, "--backend", "torch", "-n", 5, "--batch-size", 2, "--seed", 3, "--labels",
              "cat,ant,1", "--schedule", tmp_path / "sde.json", "--out", tmp_path / "s", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["contact_sheet"] == str(tmp_path / "s-contact-sheet.png")
    model, classes = load_model(tiny_model_path), [2, 0, 1]
    assert told["files"] == [str(tmp_path / "s" / f"{k:06d}-{classes[k % 3]}.png") for k in range(5)]
    for start in (0, 2, 4):
        indices = range(start, min(5, start + 2))
        labels = torch.tensor([classes[index % 3] for index in indices])
        drawn = sample(
            model, schedule, draw_noise((3, 8, 8), seed=3, indices=indices), labels,
            step_noise=draw_step_noise((3, 8, 8), seed=3, indices=indices),
        )  # fmt: skip
        for index, image in zip(indices, to_uint8(drawn), strict=True):
            name = f"{index:06d}-{classes[index % 3]}.png"
            assert (np.asarray(Image.open(tmp_path / "s" / name)) == image).all()


def test_ctrl_c_keeps_the_pictures_and_says_so(workspace, tmp_path) -> None:
    slow = workspace / "slow.json"
    Schedule.full(SamplingSpec(num_steps=200)).save(slow)
    line = [sys.executable, "-m", "ddt_accel", "sample", "-n", "100", "--backend", "torch", "--batch-size", "2",
            "-w", str(workspace), "--npz", str(tmp_path / "x.npz"), "--schedule", str(slow)]  # fmt: skip
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (workspace / "samples" / "000003-3.png").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    kept = len(list((workspace / "samples").iterdir()))
    assert process.returncode == 130
    assert f"{kept} of 100 pictures are in {workspace / 'samples'}" in " ".join(told.split())
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".") or path.suffix == ".npz"]


def test_a_folder_of_the_users(cli, workspace, tmp_path, monkeypatch) -> None:
    """Nothing of it is removed, what an earlier run left is told, and beside "." nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for images in (5, 2):
        ran = cli("sample", "-w", workspace, "-n", images, "--out", "mine")
        assert ran.code == 0, ran.err
    assert "3 pictures of an earlier run, 000002-2.png to 000004-0.png" in ran.err
    assert len(list((tmp_path / "mine").iterdir())) == 5
    monkeypatch.chdir(tmp_path / "mine")
    before = sorted(tmp_path.iterdir())
    assert cli("sample", "-w", workspace, "-n", 5, "--out", ".").code == 0
    assert sorted(tmp_path.iterdir()) == before
    assert len(list((tmp_path / "mine").iterdir())) == 5


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--steps", 20], "--steps is 20, but {0} is a schedule for 6 steps; leave --steps out to sample in 6, or make "
                          "one with `ddt-accel solve --steps 20 -w {1}`."),
        (["--guidance", 4], "--guidance is 4, but {0} is a schedule for guidance 2; leave --guidance out to sample "
                            "with that, or make one with `ddt-accel calibrate --guidance 4 -w {1}`, then `ddt-accel "
                            "solve -w {1}`."),
    ],
)  # fmt: skip
def test_other_sampling_is_refused_in_the_words_of_the_command(cli, workspace, asked: list, said: str) -> None:
    ran = cli("sample", "-w", workspace, *asked)
    assert ran.code == 2
    assert said.format(workspace / "schedule.json", workspace) in " ".join(ran.err.split())
    shutil.rmtree(workspace / "export")
    assert cli("sample", "-w", workspace, *asked).err == ran.err  # before anything is opened
