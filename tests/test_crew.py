"""Workers by Ray as it is: who dies is replaced, each unit is done once, and it is what one process does."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from jobs import Squares

from ddt_accel import Calibration, SamplingSpec, Schedule, calibrate, load_model
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.calibration.statistics import ARRAYS, COARSER, SHARED
from ddt_accel.cli.opening import NetworkSettings
from ddt_accel.cli.references import follow
from ddt_accel.cluster.crew import MOST_BACK, Crew
from ddt_accel.cluster.instance import Site, crew_size, instance
from ddt_accel.errors import ConfigError, WorkerError
from ddt_accel.evaluation.converged import Keeper, Reference
from ddt_accel.fitting.fit import Fitter
from ddt_accel.fitting.fit_spec import FitSpec
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.stages import silent

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ddt-accel[cluster]'")


@pytest.fixture(scope="module")
def ray() -> Iterator[object]:
    """An instance of this machine for crews of two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        with instance(Site(workers=2)) as found:
            yield found


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def crew(ray, said) -> Crew:
    return Crew(ray, Site(workers=2), said.append, lambda number: f"number {number}")


def squared(crew: Crew, folder: Path, numbers: range) -> Iterator[tuple[int, int]]:
    """(number, its square) as they come."""
    job = partial(Squares, folder)
    told = crew.first(job)

    def misfit(other: str) -> str | None:
        return None if other == told else f"It tells {other}."

    for member, number, (square, process) in crew.work(job, iter(numbers), len(numbers), misfit):
        assert member.process == process
        yield number, square


def test_every_unit_is_done_once_though_workers_die(crew, said, tmp_path, capfd) -> None:
    (tmp_path / "3").write_text("die once")
    (tmp_path / "7").write_text("fail once")
    (tmp_path / "8").write_text("die once")
    assert sorted(squared(crew, tmp_path, range(12))) == [(number, number**2) for number in range(12)]
    assert len(said) == 3
    assert capfd.readouterr() == ("", "")
    for number, why in ((3, "its process died"), (7, "ValueError: 7 cannot be squared"), (8, "its process died")):
        assert any(f"is gone, and another takes number {number}: {why}" in line for line in said)
    assert {member.number for member in crew.members} <= {0, 1}


def test_a_unit_that_kills_ends_the_work_after_some_times(crew, said, tmp_path) -> None:
    (tmp_path / "5").write_text("die")
    done = []
    with pytest.raises(WorkerError, match=rf"Number 5 failed {1 + MOST_BACK} times, .* its process died.* is kept"):
        done.extend(squared(crew, tmp_path, range(12)))
    assert len(said) == MOST_BACK


def test_causes_that_can_be_removed_are_told_at_once(crew, said, tmp_path) -> None:
    (tmp_path / "2").write_text("refuse")
    with pytest.raises(WorkerError, match=rf"Number 2 failed on {socket.gethostname()}: 2 is unlucky; give another\."):
        list(squared(crew, tmp_path, range(4)))
    (tmp_path / "refuse-all").write_text("")
    with pytest.raises(ConfigError, match=r"^--squares is 0; give at least 1\.$"):
        crew.first(partial(Squares, tmp_path))
    assert said == []


def test_nobody_waits_for_ray_when_it_is_gone(ray, crew, tmp_path, monkeypatch) -> None:
    """As it is said of this machine some seconds after its raylet was killed."""
    here = ray.get_runtime_context().get_node_id()
    monkeypatch.setattr("ddt_accel.cluster.crew._WAIT", 0.001)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": here, "Alive": False}, {"NodeID": "other", "Alive": True}])
    with pytest.raises(WorkerError, match=r"^Ray itself has ended on this machine, .* the same command goes on from"):
        crew.first(partial(Squares, tmp_path))


def test_more_workers_than_there_is_place_for_are_refused(ray) -> None:
    with pytest.raises(ConfigError, match=r"3 workers of 1 core each, and there is place for 0 in the cluster at x:1;"):
        crew_size(ray, Site(address="x:1", workers=3))
    with pytest.raises(ConfigError, match=r"2 workers with a GPU each, and Ray finds no GPUs in the cluster;"):
        crew_size(ray, Site(address="auto", workers=2, gpu=True))


def test_who_would_do_something_else_does_nothing(crew, said, tmp_path) -> None:
    job = partial(Squares, tmp_path)
    told = crew.first(job)
    (tmp_path / "other").write_text("")
    working = crew.work(job, iter(range(200)), 200, lambda other: None if other == told else f"It tells {other}.")
    assert sorted(number for _, number, _ in working) == list(range(200))
    if said:  # unless the first was done before the second had begun
        assert said == ["Worker 1 cannot begin; the others go on without it: It tells cubes."]
    assert [member.number for member in crew.members] == [0]


@pytest.fixture
def crews(ray, monkeypatch) -> None:
    """Commands find the instance that is there already, and begin none of their own."""
    monkeypatch.setattr("ddt_accel.cluster.crew.instance", lambda site, **told: nullcontext(ray))


def test_calibration_by_workers_is_that_of_one_process(cli, crews, tiny_model_path, tmp_path) -> None:
    """To rounding, and what one process has begun they continue; batches are the same."""
    line = ["calibrate", "--model", tiny_model_path, "--steps", 6, "--samples", 7, "--sensitivity-samples", 3,
            "--batch-size", 2, "--threads", 1]  # fmt: skip
    assert cli(*line, "-w", tmp_path / "one").code == 0
    expected = Calibration.load(tmp_path / "one" / "calibration.safetensors")
    begun, place = tmp_path / "many" / "calibration.partial.safetensors", tmp_path / "many"
    calibrate(load_model(tiny_model_path), expected.spec, 2, batch_size=2, sensitivity_samples=3).save(begun)
    ran = cli(*line, "-w", place, "--workers", 2, "--json")
    assert ran.code == 0, ran.err
    assert "Continuing an interrupted calibration: 2 of 7" in ran.err
    assert "and 1 of 2 workers has any; a smaller --batch-size" in " ".join(ran.err.split())
    assert json.loads(ran.out)["samples"] == 7
    found = Calibration.load(place / "calibration.safetensors")
    for name in ("ranges", "spec", "checkpoint_sha256", "latent_shape"):
        assert getattr(found, name) == getattr(expected, name)
    for name in (*ARRAYS, COARSER, SHARED):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12, err_msg=name)
    assert not begun.exists()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_fit_by_workers_is_that_of_one_process(cli, crews, tiny_model_path, tmp_path) -> None:
    """Bit for bit, and so is all that it is fitted to."""
    Schedule.uniform(SamplingSpec(num_steps=2, guidance=1.5), 1).save(tmp_path / "s.json")
    line = ["fit", "--model", tiny_model_path, "--schedule", tmp_path / "s.json", "--images", 5, "--held-out", 4,
            "--batch-size", 2, "--iterations", 1, "--reference-steps", 12, "--threads", 1]  # fmt: skip
    one, many = tmp_path / "one", tmp_path / "many"
    assert cli(*line, "-w", one).code == 0
    ran = cli(*line, "-w", many, "--workers", 2)
    assert ran.code == 0, ran.err
    assert "2 workers on this machine" in ran.err
    assert (many / "schedule.json").read_bytes() == (one / "schedule.json").read_bytes()
    assert files(many / "fit") == files(one / "fit")
    again = cli(*line, "-w", many, "--schedule", tmp_path / "s.json", "--workers", 2)
    assert again.code == 0, again.err
    assert "on this machine" not in again.err  # there is nothing to follow


def test_a_plan_by_workers_is_that_of_one_process(cli, crews, workspace) -> None:
    line = ["plan", "-w", workspace, "--cost", 0.6, "-n", 3, "--batch-size", 2, "--threads", 1, "--json"]
    one = cli(*line)
    many = cli(*line, "--workers", 1)
    assert many.code == 0, many.err
    assert "1 worker on this machine" in many.err
    assert json.loads(many.out) == json.loads(one.out)
    assert len(files(workspace / "fit")) == 2


def test_what_a_search_finds_is_fitted_to_what_was_followed(tiny_model_path, tmp_path) -> None:
    """Whatever grid is found, nothing more is followed then."""
    model, spec = load_model(tiny_model_path), SamplingSpec(num_steps=8, last_step=0.07, timeshift=1.3)
    fit = FitSpec(iterations=1, images=4, held_out=4, batch_size=4, reference_steps=16)
    for found in (spec, spec.on_grid(5, timeshift=0.7, solver="ab2"), spec.on_grid(3, timeshift=2.1, solver="euler")):
        assert Fitter(model, Schedule.full(found), fit).references == fit.references(spec, 16)
    searched = Fitter(model, Schedule.full(spec), fit, cache=tmp_path)
    searched.run()
    keeper = Keeper(searched.backend, searched.latent_shape, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {keeper.path(one).name for one in searched.references}


def test_batches_that_are_kept_are_not_followed_again(tiny_model_path, tmp_path) -> None:
    """So that no worker is needed for them; what is made of them is what one process keeps."""
    backend = TorchBackend(load_model(tiny_model_path))
    there, wanted = (Keeper(backend, (3, 8, 8), tmp_path / name) for name in ("there", "wanted"))
    images = ImageRange(seed=4, first=1, stop=6)
    references = [
        Reference.converged("paths", SamplingSpec(num_steps=2), 8, images),
        Reference.converged("ends", SamplingSpec(num_steps=2), 8, images),
        Reference(kind="unshared", spec=SamplingSpec(num_steps=3, solver="heun"), images=images),
    ]
    for reference in references:
        wanted.made(reference, 2)
        for part in reference.parts(2):
            there.made(part, 2)
    settings = NetworkSettings(
        workspace=tmp_path, said={}, backend="torch", export_folder=None, device="cpu", threads=1, batch_size=2
    )
    nowhere = Site(address="nowhere")
    follow(nowhere, settings, there, dict.fromkeys(references, 2), silent)
    assert files(tmp_path / "there") == files(tmp_path / "wanted")
    there.drop(references[0])
    with pytest.raises(ConfigError, match="--ray is 'nowhere'"):
        follow(nowhere, settings, there, dict.fromkeys(references, 2), silent)
