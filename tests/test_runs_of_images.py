"""Runs of many images: killed and continued, damaged and mended, never mixed, read as ADM's evaluator reads."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_sentence, write_tiny_model
from numpy.typing import NDArray
from PIL import Image

from ddt_accel import Sampler, SamplingSpec, Schedule, draw_noise, load_model, sample
from ddt_accel.artifacts import TEMPORARY, read_arrays
from ddt_accel.drawing import npz_rows
from ddt_accel.drawing.drawer import Drawer
from ddt_accel.drawing.identity import RunIdentity, schedule_identity
from ddt_accel.drawing.images import Images
from ddt_accel.drawing.pngs import PngFiles
from ddt_accel.drawing.run import drawn_here, keep, write_npz
from ddt_accel.drawing.run_folder import RANGE_FORMAT, RANGE_VERSION, RunFolder, range_size
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError
from ddt_accel.evaluation.fidelity import to_uint8
from ddt_accel.sampling.labels import Labels

COUNT, BATCH = 200, 16
SIZE = range_size(BATCH)
IDENTITY = RunIdentity(
    seed=0, labels="equal", sampling="6 steps of euler", schedule_sha256="a" * 64, latents="3,8,8",
    checkpoint_sha256="b" * 64, guide_sha256=None, backend="torch", decoder_sha256=None,
)  # fmt: skip


@pytest.fixture
def line(tiny_model_path, tmp_path) -> list[object]:
    """A command that draws a run of 200 images in four ranges into tmp_path / "run"."""
    Schedule.uniform(SamplingSpec(num_steps=6), 2).save(tmp_path / "s.json")
    return [
        "sample", "--backend", "torch", "--model", tiny_model_path, "--schedule", tmp_path / "s.json", "-w",
        tmp_path / "w", "-n", COUNT, "--batch-size", BATCH, "--out", tmp_path / "run",
    ]  # fmt: skip


def content(folder: Path, pattern: str = "**/*") -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern) if path.is_file()}


def with_labels(count: int, classes: int = 4) -> list[str]:
    return [f"{index:06d}-{index % classes}.png" for index in range(count)]


def rows_of(run: RunFolder, indices: range, side: int = 8) -> Images:
    """Images that tell their index."""
    rows = np.full((len(indices), side, side, 3), 0, np.uint8)
    rows[:] = (np.array(indices) % 251).astype(np.uint8)[:, None, None, None]
    return Images(first=indices.start, rows=rows, labels=np.array(indices) % 4)


def finished(folder: Path, images: int, side: int = 8, size: int = 64) -> RunFolder:
    run = RunFolder.begun(folder, IDENTITY, images, size)
    for indices in run.ranges():
        run.write(rows_of(run, indices, side), {})
    return run


def test_a_run_is_what_the_function_draws(cli, line, tiny_model_path, tmp_path) -> None:
    """Bit for bit; ranges, pictures and npz say the same, and nothing but samples lies among samples."""
    ran = cli(*line, "--seed", 3, "--npz", tmp_path / "x.npz", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert (told["images"], told["drawn"], told["files"]) == (COUNT, COUNT, [str(tmp_path / "x.npz")])
    model, schedule = load_model(tiny_model_path), Schedule.load(tmp_path / "s.json")
    drawn = []
    for start in range(0, COUNT, BATCH):
        indices = range(start, min(COUNT, start + BATCH))
        noise, labels = draw_noise((3, 8, 8), seed=3, indices=indices), torch.tensor([k % 4 for k in indices])
        drawn.append(to_uint8(sample(model, schedule, noise, labels)))
    expected = np.concatenate(drawn)
    with np.load(tmp_path / "x.npz") as read:
        assert list(read) == ["arr_0", "arr_1"]
        assert (read["arr_0"].dtype, read["arr_1"].dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(read["arr_0"], expected)
        np.testing.assert_array_equal(read["arr_1"], np.arange(COUNT) % 4)
    folder = tmp_path / "run"
    assert sorted(path.name for path in folder.iterdir()) == ["contact-sheet.png", "pictures", "ranges", "run.json"]
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == with_labels(COUNT)
    for name, pixels in zip(with_labels(COUNT), expected, strict=True):
        assert (np.asarray(Image.open(folder / "pictures" / name)) == pixels).all()
    names = [path.name for path in sorted((folder / "ranges").iterdir())]
    assert names == [f"{a:06d}-{min(COUNT, a + SIZE):06d}.safetensors" for a in range(0, COUNT, SIZE)]
    document, arrays = read_arrays(folder / "ranges" / names[1], RANGE_FORMAT, RANGE_VERSION)
    assert document["range"] == [SIZE, 2 * SIZE]
    assert document["identity"]["checkpoint_sha256"] == model.source.sha256
    np.testing.assert_array_equal(arrays["images"], expected[SIZE : 2 * SIZE])


def until(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not reached() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.stderr and process.stderr.read()


def test_killed_again_and_again_it_ends_in_the_same_bytes(cli, line, tmp_path) -> None:
    """At random moments of the first, the second and the third range; what was finished is not drawn again."""
    Schedule.full(SamplingSpec(num_steps=60)).save(tmp_path / "s.json")  # slow enough to be met in the middle
    whole = [*line, "--out", tmp_path / "whole", "--npz", tmp_path / "whole.npz"]
    assert cli(*whole).code == 0
    run, moments = tmp_path / "run", np.random.default_rng()
    line += ["--npz", tmp_path / "x.npz"]
    seen: dict[Path, int] = {}
    for stop, signum in ((0, signal.SIGKILL), (1, signal.SIGKILL), (2, signal.SIGTERM)):
        command = [sys.executable, "-m", "ddt_accel", *map(str, line)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
            until(process, lambda stop=stop: (run / "run.json").exists() and len(list(run.glob("ranges/0*"))) >= stop)
            time.sleep(moments.uniform(0, 0.2))
            process.send_signal(signum)
            _, told = process.communicate(timeout=60)
        kept = {path: path.stat().st_mtime_ns for path in run.glob("ranges/0*")}
        assert seen.items() <= kept.items()
        assert len(kept) < 4
        assert not (tmp_path / "x.npz").exists()
        seen = kept
    images = RunFolder.load(run).present()
    assert f"Stopped. {images} of {COUNT} images are kept in {run}; the same command goes on" in " ".join(told.split())
    ran = cli(*line, "--json")
    assert ran.code == 0, ran.err
    assert f"{images} of {COUNT} images are in {run} already" in ran.err
    assert json.loads(ran.out)["drawn"] == COUNT - images
    assert seen.items() <= {path: path.stat().st_mtime_ns for path in run.glob("ranges/0*")}.items()
    assert content(run) == content(tmp_path / "whole")
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(TEMPORARY)]


KILLED = """
import os, signal, sys
from pathlib import Path
from ddt_accel.drawing.run import write_npz
from ddt_accel.drawing.run_folder import RunFolder
def killed(images):
    os.kill(os.getpid(), signal.SIGKILL)
write_npz(RunFolder.load(Path(sys.argv[1])), Path(sys.argv[2]), killed, alone=True)
"""


def test_killed_over_its_npz_it_leaves_nothing_behind(tmp_path) -> None:
    run = finished(tmp_path / "run", 200)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(run.folder), str(tmp_path / "x.npz")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [path.name.startswith(TEMPORARY) for path in tmp_path.glob(".*")] == [True]
    for name in ("x.npz", "y.npz"):
        write_npz(run, tmp_path / name, lambda images: None, alone=True)
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "x.npz", "y.npz"]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(RunIdentity)])
def test_another_run_is_refused_and_what_differs_is_said(tmp_path, field: str) -> None:
    finished(tmp_path / "run", 10)
    before = content(tmp_path)
    other = dataclasses.replace(IDENTITY, **{field: 7 if field == "seed" else "c" * 64})
    with pytest.raises(MismatchError, match=r"holds images of another run: .* there and .* here\. Give") as told:
        RunFolder.begun(tmp_path / "run", other, 10, 64)
    words = {
        "seed": "--seed is 0 there and 7 here",
        "labels": "--labels is equal",
        "latents": "--latent-shape is 3,8,8",
        "guide_sha256": "the guide is none there and cccccccccccc… here",
        "checkpoint_sha256": "the checkpoint is bbbbbbbbbbbb… there and cccccccccccc… here",
    }
    assert words.get(field, f"the {field.removesuffix('_sha256')} is") in str(told.value)
    assert content(tmp_path) == before


def test_other_commands_are_refused_in_a_sentence(cli, line, made, tmp_path) -> None:
    assert cli(*line).code == 0
    before = content(tmp_path / "run")
    write_tiny_model(tmp_path / "other.safetensors", seed=1)
    Schedule.uniform(SamplingSpec(num_steps=6, guidance=3), 2).save(tmp_path / "guided.json")
    Schedule.uniform(SamplingSpec(num_steps=6), 3).save(tmp_path / "more.json")
    for other, said in (
        (["--seed", 1], "--seed is 0 there and 1 here"),
        (["--labels", "random"], "--labels is equal there and random here"),
        (["--labels", "dog,0"], "--labels is equal there and 3,0 here"),
        (["--full"], "2 encoder runs there and 6 steps of euler, guidance 2 from 0.3 to 1, 6 encoder runs here"),
        (["--schedule", tmp_path / "guided.json"], "guidance 2 from 0.3 to 1, 2 encoder runs there and 6 steps of "
                                                   "euler, guidance 3 from 0.3 to 1"),
        (["--schedule", tmp_path / "more.json"], "the sampling is"),
        (["--model", tmp_path / "other.safetensors"], "the checkpoint is"),
        (["--guide", tmp_path / "other.safetensors"], "the guide is none there and"),
        (["--backend", "onnx", "--export", made / "export"], "the backend is torch there and ONNX Runtime, fp32 here"),
        (["-n", 150], f"holds a run of {COUNT} images, and --images is 150"),
        (["-n", 3], "holds a run of many images, which few must not get among"),
    ):  # fmt: skip
        assert_sentence(cli(*line, *other), said)
    assert content(tmp_path / "run") == before


def test_how_a_schedule_was_found_makes_no_other_run() -> None:
    schedule = Schedule.uniform(SamplingSpec(num_steps=6), 2)
    found = dataclasses.replace(schedule, objective="closed loop", predicted_cost=0.5, calibration_sha256="d" * 64)
    assert schedule_identity(found) == schedule_identity(schedule)
    longer = dataclasses.replace(schedule, spec=dataclasses.replace(schedule.spec, last_step=0.1))
    assert schedule_identity(longer)["schedule_sha256"] != schedule_identity(schedule)["schedule_sha256"]


def flipped(path: Path, other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def truncated(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def emptied(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def of_another_run(path: Path, other: Path) -> None:
    shutil.copy(other / "ranges" / path.name, path)


def of_other_images(path: Path, other: Path) -> None:
    shutil.copy(path.with_name(path.name.replace("000064-000128", "000000-000064")), path)


DAMAGES = [flipped, truncated, emptied, of_another_run, of_other_images]


def test_damaged_ranges_are_noticed_and_drawn_again(cli, line, tmp_path) -> None:
    assert cli(*line, "--seed", 1, "--out", tmp_path / "other").code == 0
    assert cli(*line, "--npz", tmp_path / "whole.npz").code == 0
    before = content(tmp_path / "run")
    for damage in DAMAGES:
        path = tmp_path / "run" / "ranges" / "000064-000128.safetensors"
        damage(path, tmp_path / "other")
        ran = cli(*line, "--npz", tmp_path / "x.npz", "--json")
        assert ran.code == 0, ran.err
        assert f"Images 64 to 127 have to be drawn again: {path} " in " ".join(ran.err.split())
        assert json.loads(ran.out)["drawn"] == 64
        assert content(tmp_path / "run") == before
        assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_damage_that_comes_later_ends_in_a_sentence(tmp_path) -> None:
    run = finished(tmp_path / "run", 200)
    flipped(run.path(range(128, 192)), tmp_path)
    with pytest.raises(ArtifactError, match=r"000128-000192\.safetensors is damaged"):
        write_npz(run, tmp_path / "x.npz", lambda images: None, alone=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_of_another_version_is_refused(cli, line, tmp_path) -> None:
    assert cli(*line).code == 0
    path = tmp_path / "run" / "run.json"
    good = path.read_text()
    for text, said in (
        (good.replace('"version": 1', '"version": 9'), "version 9"),
        (good.replace('"seed": 0', '"seed": 1'), "was changed after it was written"),
        ("{", "damaged or not JSON"),
        ('{"format": "ddt-accel run of images", "version": 1, "images": 0}', "makes no sense"),
    ):
        path.write_text(text)
        assert_sentence(cli(*line), said)


def test_a_run_may_get_more_images(cli, line, tmp_path) -> None:
    """Those of a run that had so many from the beginning; only the short last range is drawn again."""
    assert cli(*line).code == 0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "ranges").iterdir() if "200" not in path.name}
    more = [*line, "-n", 300]
    ran = cli(*more, "--json")
    assert (ran.code, json.loads(ran.out)["drawn"]) == (0, 300 - 192)
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in kept}.items()
    assert cli(*more, "--out", tmp_path / "new").code == 0
    assert content(tmp_path / "run") == content(tmp_path / "new")


def test_pngs_come_and_stay_as_they_are_asked_for(cli, line, tmp_path) -> None:
    pictures = tmp_path / "run" / "pictures"
    assert cli(*line, "--no-png").code == 0
    assert not pictures.exists()
    assert cli(*line, "--png").code == 0
    before = content(pictures)
    assert sorted(before) == with_labels(COUNT)
    for name in (with_labels(COUNT)[0], with_labels(COUNT)[130]):
        (pictures / name).unlink()
    (pictures / f"{TEMPORARY}1-0").write_bytes(b"of a killed process")
    ran = cli(*line, "--json")
    assert (ran.code, json.loads(ran.out)["drawn"]) == (0, 0)
    assert content(pictures) == before


def test_more_than_a_thousand_have_no_pngs_unless_they_are_asked_for(cli, line, tmp_path) -> None:
    assert cli(*line, "-n", 1001, "--batch-size", 200, "--schedule", few_steps(tmp_path)).code == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["contact-sheet.png", "ranges", "run.json"]
    assert_sentence(cli(*line, "-n", 5, "--out", tmp_path / "few", "--no-png"), "--no-png without --npz")


def few_steps(folder: Path) -> Path:
    Schedule.full(SamplingSpec(num_steps=1)).save(folder / "one.json")
    return folder / "one.json"


@pytest.mark.parametrize("labels", ["equal", "random", "dog,ant,1"])
@pytest.mark.parametrize("count", [7, 130])
def test_labels_lie_beside_the_pictures(cli, line, tiny_model_path, tmp_path, labels: str, count: int) -> None:
    """In the npz and in the names of PNGs, and the pictures are of them."""
    line += ["-n", count, "--seed", 5, "--npz", tmp_path / "x.npz", "--labels", labels]
    assert cli(*line).code == 0
    meant = {"equal": Labels.equal(4), "random": Labels.random(4)}.get(labels, Labels(num_classes=4, in_turn=(3, 0, 1)))
    expected = meant.of(seed=5, indices=range(count))
    found = np.load(tmp_path / "x.npz")
    assert found["arr_1"].tolist() == expected.tolist()
    folder = tmp_path / "run" / "pictures" if count > 100 else tmp_path / "run"
    names = [f"{index:06d}-{label}.png" for index, label in enumerate(expected.tolist())]
    assert sorted(path.name for path in folder.iterdir()) == names
    schedule, first = Schedule.load(tmp_path / "s.json"), range(min(count, BATCH))
    drawn = sample(load_model(tiny_model_path), schedule, draw_noise((3, 8, 8), seed=5, indices=first), expected[first])
    np.testing.assert_array_equal(found["arr_0"][: len(first)], to_uint8(drawn))


def rows_as_adm_reads(path: Path, name: str, batch: int = 64) -> tuple[tuple[int, ...], NDArray[np.generic]]:
    """As guided-diffusion's evaluations/evaluator.py does: open_npz_array, then StreamingNpzArrayReader.read_batch."""
    with path.open("rb") as file, zipfile.ZipFile(file, "r") as archive:
        assert f"{name}.npy" in archive.namelist()
        with archive.open(f"{name}.npy", "r") as member:
            assert np.lib.format.read_magic(member) == (1, 0)  # others it reads into memory
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
            assert not fortran
            assert not dtype.hasobject
            parts = []
            for start in range(0, shape[0], batch):
                count = min(batch, shape[0] - start)
                data = member.read(count * int(np.prod(shape[1:])) * dtype.itemsize)
                parts.append(np.frombuffer(data, dtype=dtype).reshape([count, *shape[1:]]))
            assert member.read() == b""
    return shape, np.concatenate(parts)


def test_the_npz_is_read_as_adm_reads_it(tmp_path) -> None:
    run = finished(tmp_path / "run", 200)
    write_npz(run, tmp_path / "x.npz", lambda images: None, alone=True)
    expected = np.concatenate([rows_of(run, indices).rows for indices in run.ranges()])
    shape, rows = rows_as_adm_reads(tmp_path / "x.npz", "arr_0")
    assert (shape, rows.dtype) == ((200, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(rows_as_adm_reads(tmp_path / "x.npz", "arr_1")[1], np.arange(200) % 4)
    whole = io.BytesIO()
    np.savez(whole, expected, np.arange(200) % 4)
    with zipfile.ZipFile(whole) as theirs, zipfile.ZipFile(tmp_path / "x.npz") as ours:
        assert theirs.namelist() == ours.namelist()
        assert all(theirs.read(name) == ours.read(name) for name in theirs.namelist())


def test_memory_does_not_grow_with_the_images(tmp_path) -> None:
    """6400 images of 48 × 48 pixels, 44 MB, take what 1600 do: a few ranges of 0.44 MB."""
    peaks = []
    for count in (100, 1600, 6400):
        run = finished(tmp_path / str(count), count, side=48)
        tracemalloc.start()
        write_npz(run, tmp_path / f"{count}.npz", lambda images: None, alone=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert np.load(tmp_path / "6400.npz")["arr_0"].nbytes == 6400 * 48 * 48 * 3
    assert peaks[2] < peaks[1] + 300_000
    assert peaks[2] < 4_000_000


class Known:
    """A drawer whose images tell their index."""

    def __init__(self, run: RunFolder, side: int) -> None:
        self.run, self.side = run, side

    def draw(self, indices: range) -> Iterator[Images]:
        for start in range(indices.start, indices.stop, 20):
            yield rows_of(self.run, range(start, min(indices.stop, start + 20)), self.side)


def draw(run: RunFolder, on_images: Callable[[int], None], pngs: PngFiles) -> None:
    images = drawn_here(run.ranges(), Known(run, 48), on_images)
    keep(run, images, {}, left=run.images, on_range=lambda indices: None, pngs=pngs)


def test_memory_of_drawing_does_not_grow_either(tmp_path) -> None:
    """PNGs wait for their threads, but not all of them at once."""
    peaks = []
    for count in (64, 640, 1600):
        run = RunFolder.begun(tmp_path / str(count), IDENTITY, count, 64)
        told: list[int] = []
        tracemalloc.start()
        with PngFiles(run.pictures) as pngs:
            draw(run, told.append, pngs)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (sum(told), pngs.written, run.present()) == (count, count, count)
        np.testing.assert_array_equal(run.read(range(64)).rows, rows_of(run, range(64), 48).rows)
    assert peaks[2] < peaks[1] + 1_000_000


def test_pngs_that_cannot_be_written_end_the_run_and_lose_no_range(tmp_path) -> None:
    run = RunFolder.begun(tmp_path / "run", IDENTITY, 640, 64)
    run.pictures.write_bytes(b"no folder")
    drawing = pytest.raises(ArtifactError, match=r"pictures is no folder; choose another place")
    with drawing, PngFiles(run.pictures) as pngs:
        draw(run, lambda images: None, pngs)
    assert 64 <= run.present() < 640
    run.read(range(64))


def test_a_disk_without_space_is_told_after_the_first_range(cli, line, tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(npz_rows.shutil, "disk_usage", lambda path: usage._replace(free=COUNT * 8 * 8 * 3))
    ran = cli(*line, "--npz", tmp_path / "x.npz")
    assert_sentence(ran, f"{tmp_path / 'run'} will take 0.00 GB, and 0.00 GB are free there")
    assert RunFolder.load(tmp_path / "run").present() == SIZE
    assert cli(*line).code == 0  # the ranges alone have space


def test_a_run_has_one_driver(cli, line, tmp_path) -> None:
    """The second is refused, in a sentence that names the first; nothing of the run changes."""
    Schedule.full(SamplingSpec(num_steps=60)).save(tmp_path / "s.json")
    command = [sys.executable, "-m", "ddt_accel", *map(str, line)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as first:
        until(first, (tmp_path / "run" / "run.json").exists)
        for other in ([], ["--shard", "1/2"]):
            assert_sentence(cli(*line, *other), f"process {first.pid} on")
        assert_sentence(cli("sample", "--finish", "--out", tmp_path / "run"), f"is at work on {tmp_path / 'run'}; wait")
        assert first.wait(timeout=240) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "s.json", "w"]
    assert json.loads(cli(*line, "--json").out)["drawn"] == 0


class Shown:
    """A decoder that remembers what it is given at a time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(latents))
        return latents.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize(("batch", "decoded", "sizes"), [(4, 5, [5, 5]), (4, 3, [3, 3, 3, 1]), (10, 4, [4, 4, 2]),
                                                         (3, 64, [10])])  # fmt: skip
def test_latents_decode_in_batches_of_their_own(tiny_model_path, batch: int, decoded: int, sizes: list[int]) -> None:
    model, schedule = load_model(tiny_model_path), Schedule.uniform(SamplingSpec(num_steps=3), 2)
    sampler, decode = Sampler(model, schedule, batch_size=batch), Shown()
    drawer = Drawer(sampler, Labels.random(4), seed=2, pixels=False, decode=decode, decode_batch=decoded)
    parts = list(drawer.draw(range(20, 30)))
    assert decode.sizes == sizes
    assert [(part.first, part.stop) for part in parts] == [
        (20 + sum(sizes[:k]), 20 + sum(sizes[: k + 1])) for k in range(len(sizes))
    ]
    images = Images.joined(parts)
    labels = Labels.random(4).of(seed=2, indices=range(20, 30))
    plain = sample(model, schedule, draw_noise((3, 8, 8), seed=2, indices=range(20, 30)), labels)
    assert images.labels.tolist() == labels.tolist()
    assert np.abs(images.rows.astype(int) - to_uint8(Shown()(plain)).astype(int)).max() <= 1
    with pytest.raises(ConfigError, match="--decode-batch is 0"):
        Drawer(sampler, Labels.equal(4), seed=2, pixels=False, decode=decode, decode_batch=0)


@pytest.mark.parametrize(("batch", "size"), [(1, 64), (16, 64), (48, 48), (64, 64), (30, 60), (500, 500)])
def test_ranges_hold_whole_batches_and_all_images_once(tmp_path, batch: int, size: int) -> None:
    assert range_size(batch) == size
    run = RunFolder.begun(tmp_path, IDENTITY, 1000, size)
    assert [index for indices in run.ranges() for index in indices] == list(range(1000))


def test_it_is_told_what_a_run_is(cli, line, tmp_path) -> None:
    line = line[: line.index("--out")]
    assert cli(*line).code == 0
    folder = tmp_path / "w" / "images"
    (folder / "ranges" / "000064-000128.safetensors").unlink()
    for path in (folder, folder / "run.json"):
        told = cli("inspect", path)
        assert "136 of 200; the same `ddt-accel sample` goes on" in told.out
    assert json.loads(cli("inspect", folder, "--json").out)["drawn"] == 136
    assert "range of images" in cli("inspect", folder / "ranges" / "000000-000064.safetensors").out
    status = json.loads(cli("status", "-w", tmp_path / "w", "--json").out)
    assert (status["images"]["images"], status["images"]["drawn"]) == (200, 136)
