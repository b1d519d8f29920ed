"""Several processes draw one run: each range once, whoever is last completes it, and it is what one process draws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import assert_sentence

from ddt_accel import SamplingSpec, Schedule
from ddt_accel.cli.options import device_here
from ddt_accel.drawing.claims import Claims
from ddt_accel.drawing.identity import RunIdentity
from ddt_accel.drawing.run_folder import RunFolder
from ddt_accel.drawing.shard import Shard, parse_shard, shard_of
from ddt_accel.errors import ConfigError
from ddt_accel.locks import joining

COUNT = 300
IDENTITY = RunIdentity(
    seed=0, labels="equal", sampling="6 steps of euler", schedule_sha256="a" * 64, latents="3,8,8",
    checkpoint_sha256="b" * 64, guide_sha256=None, backend="torch", decoder_sha256=None,
)  # fmt: skip
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4"}


def slurm(task: int, first: int, last: int, count: int, step: int = 1) -> dict[str, str]:
    numbers = {"ID": task, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in numbers.items()}


@pytest.fixture
def line(tiny_model_path, tmp_path) -> list[object]:
    """A command that draws 300 images in five ranges into tmp_path / "run"."""
    Schedule.uniform(SamplingSpec(num_steps=2), 1).save(tmp_path / "s.json")
    return [
        "sample", "--backend", "torch", "--model", tiny_model_path, "--schedule", tmp_path / "s.json", "-w",
        tmp_path / "w", "-n", COUNT, "--batch-size", 32, "--out", tmp_path / "run",
    ]  # fmt: skip


def ranges_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "ranges").iterdir()}


@pytest.mark.parametrize("text", ["4/4", "1", "a/2", "0/0", "-1/2", "1/2/3", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--shard is .*; give I/N, from 0/"):
        parse_shard(text)


def test_shards_are_all_ranges_once() -> None:
    ranges = [range(k, k + 1) for k in range(10)]
    for count in (1, 3, 10, 17):
        parts = [list(Shard(index=index, count=count).of(ranges)) for index in range(count)]
        assert sorted((one for part in parts for one in part), key=lambda one: one.start) == ranges
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, "1/4"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        (slurm(3, 0, 7, 8), "3/8"),
        (slurm(1, 1, 4, 4), "0/4"),
        (slurm(14, 10, 16, 4, 2), "2/4"),
        (slurm(3, 3, 3, 1), None),  # one task of an array once more: all that is missing
        (slurm(2, 1, 3, 3) | TORCHRUN, "5/12"),  # torchrun in every task
    ],
)
def test_launchers_say_which_part(environment: dict[str, str], expected: str | None) -> None:
    said: list[str] = []
    part = shard_of(environment, said.append)
    assert (part and str(part)) == expected
    assert said == []


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE no number, and all are ignored."),
        ({"RANK": "", "WORLD_SIZE": "4"}, "WORLD_SIZE is 4, but RANK no number"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK is 4 and WORLD_SIZE 4, which no launcher sets"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_ID is 3, but SLURM_ARRAY_TASK_COUNT and SLURM_ARRAY_TASK_MIN"),
    ],
)
def test_what_is_set_by_halves_is_said(environment: dict[str, str], said: str) -> None:
    told: list[str] = []
    assert shard_of(environment, told.append) is None
    assert said in told[0]
    assert len(told) == 1


def test_arrays_with_gaps_have_to_be_told() -> None:
    with pytest.raises(ConfigError, match=r"task 7 of a Slurm array of 3 tasks from 1 to 7, .* --shard I/N"):
        shard_of(slurm(7, 1, 7, 3))


def test_processes_of_torchrun_have_a_gpu_each(monkeypatch) -> None:
    assert device_here("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert (device_here("cuda"), device_here("cuda:1"), device_here("cpu")) == ("cuda:3", "cuda:1", "cpu")


def test_the_last_shard_completes_the_run(cli, line, tmp_path, monkeypatch) -> None:
    """Bit for bit what one process draws, npz and pictures, too."""
    assert cli(*line, "--out", tmp_path / "whole", "--npz", tmp_path / "whole.npz").code == 0
    line += ["--npz", tmp_path / "x.npz"]
    first = cli(*line, "--shard", "0/2", "--json")
    assert first.code == 0, first.err
    assert (json.loads(first.out)["drawn"], json.loads(first.out)["shard"]) == (172, "0/2")
    assert f"172 of {COUNT} images are in {tmp_path / 'run'}; its last shard completes it" in first.err
    assert not (tmp_path / "x.npz").exists()
    missing = (
        f"{tmp_path / 'run'} lacks 128 of {COUNT} images, such as 64 to 127; the command that began it draws them."
    )
    assert_sentence(cli("sample", "--finish", "--out", tmp_path / "run", "--npz", tmp_path / "x.npz"), missing)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    last = cli(*line, "--json")
    assert (last.code, json.loads(last.out)["drawn"]) == (0, 128)
    assert "This is process 1 of 2, by RANK and WORLD_SIZE: it draws one range in 2." in last.err
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    for folder in ("ranges", "pictures"):
        ours, whole = (
            {path.name: path.read_bytes() for path in (tmp_path / name / folder).iterdir()} for name in ("run", "whole")
        )
        assert ours == whole
    assert json.loads(cli(*line, "--json").out)["drawn"] == 0  # again
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


def test_anybody_may_finish(cli, line, tmp_path) -> None:
    """Without the model, and with pictures that nobody has asked for before."""
    for index in range(3):
        assert cli(*line, "--no-png", "--shard", f"{index}/3").code == 0
    assert cli(*line, "--out", tmp_path / "whole", "--npz", tmp_path / "whole.npz").code == 0
    told = cli("sample", "--finish", "--out", tmp_path / "run", "--npz", tmp_path / "x.npz", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["files"] == [str(tmp_path / "x.npz")]
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert len(list((tmp_path / "run" / "pictures").iterdir())) == COUNT
    (tmp_path / "run" / "ranges" / "000064-000128.safetensors").write_bytes(b"")
    ran = cli("sample", "--finish", "--out", tmp_path / "run")
    assert ran.code == 2
    assert "Images 64 to 127 have to be drawn again" in ran.err
    assert "lacks 64 of 300 images, such as 64 to 127" in " ".join(ran.err.split())
    assert_sentence(
        cli("sample", "--finish", "--out", tmp_path / "none"), f"{tmp_path / 'none'} holds no run to finish"
    )


def test_what_is_finished_is_the_run_that_was_asked_for(cli, line, tiny_model_path, tmp_path) -> None:
    """The command that drew it may be typed again with --finish; what says something else is named."""
    assert cli(*line, "--no-png", "--labels", "ant, bee").code == 0
    again = cli(*line, "--labels", "0,1", "--npz", tmp_path / "x.npz", "--finish", "--json")
    assert again.code == 0, again.err
    assert "whether --model is the run's is not looked at" in again.err
    assert json.loads(again.out)["files"] == [str(tmp_path / "x.npz")]
    Schedule.full(SamplingSpec(num_steps=3)).save(tmp_path / "other.json")
    run = ["sample", "--finish", "--out", tmp_path / "run"]
    for options, said in (
        (["--images", 200], "--images is 300 there and 200 here"),
        (["--seed", 1, "-n", 16], "--seed is 0 there and 1 here; --images is 300 there and 16 here"),
        (["--labels", "equal"], "--labels is 0,1 there and equal here"),
        (["--labels", "1,0"], "--labels is 0,1 there and 1,0 here"),
        (["--latent-shape", "3,16,16"], "--latent-shape is 3,8,8 there and 3,16,16 here"),
        (["--schedule", tmp_path / "other.json"], "1 encoder runs there and 3 steps of"),
        (["--schedule", tmp_path / "s.json", "--full"], "2 steps of euler"),
        (["--steps", 3], "and --steps 3 here"),
        (["--guidance", 1.5], "and --guidance 1.5 here"),
        (["--shard", "0/2", "--workers", 2], "--finish draws nothing, and needs no --shard or --workers"),
    ):
        assert_sentence(cli(*run, *options), said)
    assert cli(*run, "--seed", 0, "--steps", 2, "--guidance", 2, "-n", 300, "--schedule", tmp_path / "s.json").code == 0


def test_few_images_have_no_shards(cli, line, tmp_path, monkeypatch) -> None:
    assert_sentence(cli(*line, "-n", 50, "--shard", "0/2"), "--images is 50, and up to 100 are drawn by one process")
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    ran = cli(*line, "-n", 50)
    assert (ran.code, "Nothing to do" in ran.out, ran.err) == (0, True, "")
    assert json.loads(cli(*line, "-n", 50, "--json").out)["drawn"] == 0
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("RANK", "0")
    first = cli(*line, "-n", 5, "--json")
    assert json.loads(first.out)["drawn"] == 5, first.err
    assert "shard" not in json.loads(first.out)
    assert "one range in" not in first.err


def test_claims_are_kept_from_others_until_they_are_given_up(tmp_path) -> None:
    run = RunFolder.begun(tmp_path / "run", IDENTITY, 250, 50)
    ranges = list(run.ranges())
    run.path(ranges[1]).parent.mkdir()
    run.path(ranges[1]).write_bytes(b"drawn")
    with Claims(run) as ours, Claims(run) as theirs:
        assert next(ours.of(ranges)) == ranges[0]
        assert list(theirs.of(ranges)) == ranges[2:]
        assert list(ours.of(ranges)) == []
        theirs.release(ranges[3])
        assert list(ours.of(ranges)) == [ranges[3]]
    assert [path.name for path in run.path(ranges[1]).parent.iterdir()] == [run.path(ranges[1]).name]


def test_processes_that_were_told_the_same_draw_each_range_once(line, tmp_path) -> None:
    """Two at once, whose shards overlap."""
    Schedule.full(SamplingSpec(num_steps=20)).save(tmp_path / "s.json")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    command = [sys.executable, "-m", "ddt_accel", *map(str, line), "--npz", str(tmp_path / "x.npz"), "--json"]
    started = [subprocess.Popen([*command, "--shard", one], **pipes) for one in ("0/2", "0/1")]
    said = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert sum(json.loads(out)["drawn"] for out, _ in said) == COUNT
    assert RunFolder.load(tmp_path / "run").present() == COUNT
    assert (tmp_path / "x.npz").exists()


def test_a_shard_is_at_work_beside_others_and_not_beside_a_driver(cli, line, tmp_path) -> None:
    with joining(tmp_path / "run", alone=False):
        assert_sentence(cli(*line), f"is at work on {tmp_path / 'run'}; wait until it is done, or stop it first.")
        assert cli(*line, "--shard", "0/2").code == 0
    with joining(tmp_path / "run", alone=True):
        assert_sentence(cli(*line, "--shard", "1/2"), f"is at work on {tmp_path / 'run'}")


def test_numbers_that_no_site_can_have_are_refused(cli) -> None:
    for options, said in (
        (["--workers", "0"], "--workers is 0; give at least 1"),
        (["--workers", "two"], "--workers is 'two'; give auto, or how many"),
        (["--cpus-per-worker", 2], "--cpus-per-worker is of --workers and --ray"),
        (["--workers", 2, "--device", "cuda:1"], "--device is cuda:1, and each worker gets a device of its own"),
        (["--workers", 2, "-n", 50], "--images is 50, and up to 100 are drawn by one process"),
    ):
        assert_sentence(cli("sample", "-n", 200, *options), said)


def test_without_ray_it_is_said_what_to_install(cli, line, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert_sentence(cli(*line, "--workers", 2), "pip install 'ddt-accel[cluster]'")
