"""What the page shows, without the page: stops, rulers, both trajectories, words and the plot."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_sentence

from ddt_accel import SamplingSpec, Schedule, draw_noise, load_model, sample
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.collection import Named, folder_for
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.evaluation.fidelity import to_uint8
from ddt_accel.offering import EXACT
from ddt_accel.studio.pareto import plot
from ddt_accel.studio.race import Race, decibels, difference
from ddt_accel.studio.ruler import ruler
from ddt_accel.studio.stops import KNOWN, Stops, stops_of
from ddt_accel.studio.visit import EVERY_CLASS, View, Visits
from ddt_accel.studio.words import told
from ddt_accel.workspace import Workspace

SHAPE = (3, 8, 8)
SPEC = SamplingSpec(num_steps=6, guidance=1.5)


@pytest.fixture(scope="module")
def backend(tiny_model_path) -> TorchBackend:
    return TorchBackend(load_model(tiny_model_path))


@pytest.fixture(scope="module")
def folder(backend, tmp_path_factory) -> Path:
    """Three schedules for the tiny network; one of other weights, one that leads elsewhere, and a damaged file."""
    place = tmp_path_factory.mktemp("workspace")
    own = dataclasses.replace(
        Schedule.uniform(SPEC, 2), checkpoint_sha256=backend.checkpoint_sha256, predicted_error=0.02,
        calibration_sha256="2" * 64,
    )  # fmt: skip
    own.save(place / "schedule.json")
    dataclasses.replace(own, refresh_steps=(0, 2, 4), predicted_error=0.002).save(place / "curve" / "03.json")
    times = tuple(float(time) for time in SPEC.times)
    dataclasses.replace(own, times=times, predicted_error=None).save(place / "plans" / "0.2-shared.json")
    dataclasses.replace(own, checkpoint_sha256="1" * 64).save(place / "foreign.json")
    elsewhere = dataclasses.replace(SPEC, guidance=3.0)
    dataclasses.replace(own, spec=elsewhere).save(place / "elsewhere.json")
    (place / "damaged.json").write_text((place / "schedule.json").read_text().replace('"refresh_steps"', '"refresh"'))
    return place


@pytest.fixture(scope="module")
def stops(backend, folder) -> Stops:
    return stops_of(backend, SHAPE, Workspace(folder), None, lambda _: None)


@pytest.fixture(scope="module")
def visits(backend, stops) -> Visits:
    return Visits(Race(backend, SHAPE), stops, ("ant", "bee", "cat", "dog"))


def seen(visits: Visits, *given: object) -> list[View]:
    return [view for view in visits.drawing(*given) if view is not None]


def test_stops_are_the_workspaces_by_cost(backend, folder, stops) -> None:
    said: list[str] = []
    again = stops_of(backend, SHAPE, Workspace(folder), None, said.append)
    assert [stop.name for stop in again.stops] == ["schedule", "plans/0.2-shared", "curve/03", EXACT]
    assert [stop.name for stop in stops.stops] == [stop.name for stop in again.stops]
    assert len(said) == 1
    assert "damaged.json" in said[0]
    costs = [stop.share for stop in stops.stops]
    assert costs == sorted(costs)
    assert costs[-1] == 1.0
    assert stops.original.schedule == Schedule.full(SPEC)
    assert [stop.db for stop in stops.stops] == [pytest.approx(40), None, pytest.approx(60), None]
    assert stops.first == 0  # as close as 35 dB
    given = Named(name="mine", schedule=Schedule.uniform(SPEC, 4))
    there = stops_of(backend, SHAPE, Workspace(folder), given, lambda _: None)
    assert there.stops[there.first].name == "mine"
    fewer = Named(name="fewer", schedule=dataclasses.replace(Schedule.full(SamplingSpec(num_steps=3, guidance=1.5)),
                                                              predicted_error=0.1))  # fmt: skip
    beside = stops_of(backend, SHAPE, Workspace(folder), fewer, lambda _: None)
    assert beside.stops[beside.first].schedule == fewer.schedule
    assert beside.stops[beside.first].db is None  # that is to its own steps, which are not the original's
    elsewhere = SamplingSpec(num_steps=6, guidance=3.0)
    fit = dataclasses.replace(Schedule.uniform(elsewhere, 2), times=tuple(map(float, elsewhere.times)))
    for schedule, original in (
        (Schedule.uniform(elsewhere, 2), elsewhere),
        (fit, SamplingSpec(num_steps=50, guidance=3.0)),
    ):
        leading = stops_of(backend, SHAPE, Workspace(folder), Named(name="mine", schedule=schedule), lambda _: None)
        assert leading.original.schedule.spec.aim == original.aim
        assert leading.stops[leading.first].name == "mine"
    foreign, _ = folder_for(folder, "1" * 64)
    with pytest.raises(MismatchError):
        stops_of(backend, SHAPE, Workspace(folder), foreign[0], lambda _: None)


def test_stops_of_the_embedded_model_are_the_shipped_ones(tmp_path) -> None:
    """With the figures of `benchmarks/shipped.py`, and of the others what their predictions and the original's are
    together."""
    shipped = stops_of(TorchBackend(load_model("cifar10")), (3, 32, 32), Workspace(tmp_path), None, print)
    by_name = {stop.name: stop for stop in shipped.stops}
    assert len(shipped.stops) == 17
    assert "cifar10-fitted-9of14-final-step" not in by_name  # it leads elsewhere
    figures = json.loads((Path(__file__).parents[1] / "benchmarks/results/shipped.json").read_text())
    for row in figures["rows"]:
        if row["schedule"] in by_name:
            assert by_name[row["schedule"]].exact_db == round(row["fitted"]["mean"], 1)
    original = round(figures["beside"]["50 Euler"]["mean"], 1)
    assert shipped.original.exact_db == original
    shared = by_name["cifar10-10of50"]
    together = 10 ** (-original / 10) + 10 ** (-shared.db / 10)
    assert shared.exact_db == pytest.approx(-10 * math.log10(together))
    assert shipped.stops[shipped.first].name == "cifar10-fitted-6of9"
    assert json.loads(KNOWN.read_text())["checkpoint_sha256"] == shared.schedule.checkpoint_sha256


def test_a_network_without_schedules_has_evenly_spread_ones(backend, tmp_path) -> None:
    found = stops_of(backend, SHAPE, Workspace(tmp_path), None, print)
    assert [stop.name for stop in found.stops] == ["even-5of50", "even-10of50", "even-25of50", EXACT]
    assert found.stops[1].schedule == Schedule.uniform(SamplingSpec(), 10)
    assert all(stop.takes_guidance for stop in found.stops)
    assert "ddt-accel optimize" in told(found.stops[0], found)
    with_one = Named(name="one", schedule=Schedule.full(SamplingSpec(num_steps=1)))
    assert [stop.name for stop in stops_of(backend, SHAPE, Workspace(tmp_path), with_one, print).stops] == [EXACT]


@pytest.mark.slow
def test_what_is_measured_stands_before_what_is_predicted(workspace, cli, tiny_model_path) -> None:
    """After `bench` the stop knows the report's time and dB, and costs are seconds."""
    arguments = ["-n", 2, "--curve-images", 2, "--batch-size", 2, "--backend", "torch"]
    assert cli("bench", "-w", workspace, *arguments).code == 0
    backend = TorchBackend(load_model(tiny_model_path))
    found = stops_of(backend, SHAPE, Workspace(workspace), None, print)
    report = json.loads((workspace / "report.json").read_text())
    mine = next(stop for stop in found.stops if stop.name == "schedule")
    row = next(one for one in report["measurements"] if one["refresh_steps"] == list(mine.schedule.refresh_steps)
               and one["schedule_sha256"])  # fmt: skip
    assert mine.measured
    assert (mine.seconds, mine.db) == (row["seconds"], row["psnr"]["mean"])
    assert "measured" in told(mine, found)


def test_both_columns_start_at_the_same_noise(backend, stops, visits) -> None:
    """And are what `sample` draws; previews come on the way, numbers at the end."""
    views = seen(visits, EVERY_CLASS, 3, 5, 1, None)
    noise, labels = draw_noise(SHAPE, seed=5, indices=range(3)), torch.arange(3)
    expected = [
        to_uint8(sample(backend, one, noise, labels)) for one in (stops.original.schedule, stops.stops[1].schedule)
    ]
    original, mine, captions = views[-1].pair
    np.testing.assert_array_equal(original, expected[0])
    np.testing.assert_array_equal(mine, expected[1])
    assert captions == ["ant, picture 1", "bee, picture 2", "cat, picture 3"]
    assert [view.pair is None for view in views] == [True] * (len(views) - 1) + [False]
    lit = [view.rulers.count("lit") for view in views]
    assert lit == sorted(lit)
    assert lit[-1] == 12
    assert f"{decibels(mine, original):.1f} dB" in views[-1].columns
    assert "speed-up" in views[-1].columns
    assert "speed-up" not in views[-2].columns
    assert views[0].columns.count("<img") == 3  # the original is being drawn, the other waits


def test_a_trajectory_that_nobody_looks_at_takes_no_step(backend, stops) -> None:
    states = []
    watched = TorchBackend(backend.model, on_state=states.append)
    frames = Race(watched, SHAPE).drawn(stops.original.schedule, [0], 0)
    for _ in range(2):
        next(frames)
    frames.close()
    assert len(states) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((0, 4, None, 0, None), "The seed is empty; give a whole number."),
        ((0, 4, -1, 0, None), "The seed is -1; give a whole number from 0 to 4294967295."),
        ((0, 4, 1.5, 0, None), "The seed is 1.5"),
        ((9, 4, 0, 0, None), "The class is 9; give one from 0 to 3."),
        ((0, 17, 0, 0, None), "The number of pictures is 17; give 1 to 16."),
        ((0, 4, 0, 99, None), "The slider has no stop 99; give 0 to 3."),
        ((0, 4, "<b>", 0, None), "The seed is &lt;b&gt;"),
    ],
)
def test_mistakes_are_sentences_on_the_page(visits, given, said: str) -> None:
    (view,) = seen(visits, *given)
    assert said in view.status
    assert 'role="alert"' in view.status
    assert view.pair is None


def test_what_is_no_mistake_of_the_visitor_is_in_the_log(visits, monkeypatch, caplog) -> None:
    monkeypatch.setattr(visits.race, "drawn", lambda *_: 1 / 0)
    (view,) = seen(visits, 0, 1, 0, 0, None)
    assert "should not" in view.status
    assert "Traceback" not in view.status
    assert "ZeroDivisionError" in caplog.text


def test_guidance_is_free_where_nothing_was_calibrated(visits, stops) -> None:
    solved, exact = stops.stops[0], stops.original
    assert not solved.takes_guidance
    assert exact.guided(3.0).spec.guidance == 3.0
    with pytest.raises(ConfigError, match=r"Guidance is 3, and schedule is a schedule for 1\.5"):
        solved.guided(3.0)
    usual = seen(visits, 0, 1, 0, 3, 1.5)[-1].pair
    strong = seen(visits, 0, 1, 0, 3, 4.0)[-1].pair
    assert not np.array_equal(usual[0], strong[0])
    np.testing.assert_array_equal(strong[0], strong[1])


def test_guidance_reaches_as_far_as_the_schedules_do(backend, stops, tmp_path) -> None:
    assert stops.guidance == (1, 8)
    Schedule.uniform(SamplingSpec(num_steps=2, guidance=12.0), 1).save(tmp_path / "strong.json")
    assert stops_of(backend, SHAPE, Workspace(tmp_path), None, print).guidance == (1, 12)


def test_previews_are_what_the_network_sees(backend, stops) -> None:
    """At the first step x + (1 − t) v is noise and velocity; what makes pictures of latents makes those, too."""
    frames = list(Race(backend, SHAPE, decode=torch.neg).drawn(stops.original.schedule, [2], 9))
    noise, label = draw_noise(SHAPE, seed=9, indices=[0]), torch.tensor([2])
    velocity = backend.model(noise, torch.zeros(1), label)
    np.testing.assert_allclose(frames[0].pictures, to_uint8(-(noise + velocity)), atol=1)
    np.testing.assert_array_equal(
        frames[-1].pictures, to_uint8(-sample(backend, stops.original.schedule, noise, label))
    )
    assert [frame.ended for frame in frames] == [False] * 5 + [True]


def test_latents_need_a_decoder(backend) -> None:
    class Latents(TorchBackend):
        pass

    latents = Latents(backend.model)
    latents.config = dataclasses.replace(backend.config, in_channels=4)
    with pytest.raises(ConfigError, match="--decoder"):
        Race(latents, (4, 8, 8))


def test_without_gradio_the_command_names_the_extra(cli, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    for module in ("app", "page"):
        monkeypatch.delitem(sys.modules, f"ddt_accel.studio.{module}", raising=False)
    assert_sentence(cli("studio"), "gradio is not installed; install it with `pip install 'ddt-accel[web]'`.")


def test_the_ruler_says_what_it_shows() -> None:
    drawn = ruler(Schedule(spec=SPEC, refresh_steps=(0, 4)), "a <b>", done=3)
    assert 'aria-label="a &lt;b&gt;: 6 steps, the encoder runs at 2 of them: 1, 5"' in drawn
    assert re.findall(r"<i(?: class=\"([^\"]*)\")?>", drawn) == ["run lit", "lit", "lit", "", "run", ""]


def test_the_plot_has_a_point_for_every_stop_that_is_known(stops) -> None:
    drawn = plot(stops, 2)
    points = re.findall(r'class="point (\w+)( chosen)?" role="button" tabindex="0" data-stop="(\d)"', drawn)
    assert points == [("shared", "", "0"), ("shared", " chosen", "2")]
    assert re.findall(r'<button type="button" data-stop="(\d)">([^<]+)', drawn) == [
        ("1", "plans/0.2-shared"),
        ("3", EXACT),
    ]
    nothing = Stops(stops=(dataclasses.replace(stops.original, db=None),))
    assert "ddt-accel bench" in plot(nothing, 0)


def test_differences_are_in_proportion() -> None:
    grey, light = (np.full((1, 2, 2, 3), value, np.uint8) for value in (100, 110))
    assert difference(grey, light).max() == difference(light, grey).min() == 40
    assert decibels(grey, light) == pytest.approx(20 * math.log10(255 / 10))
    assert decibels(grey, grey) == math.inf
