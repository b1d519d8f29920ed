"""What is measured on a GPU, by a clock that only the networks move: trajectories as `sample` draws them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from ddt_accel import SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, load_model, sample, solve
from ddt_accel.backends.choose import measure_all, seconds_a_refresh
from ddt_accel.backends.guided import GuidedBackend
from ddt_accel.backends.pytorch import TorchBackend, TorchSession
from ddt_accel.evaluation.benchmark import measure
from ddt_accel.evaluation.costs import counted_of, measured_costs
from ddt_accel.evaluation.replays import Replays
from ddt_accel.report.render import write_report
from ddt_accel.report.study import conduct
from ddt_accel.sampling.program import compile_program
from ddt_accel.stages import silent

SHAPE = (3, 8, 8)
SPEC = SamplingSpec(num_steps=4, guidance=1.5)
SHARED = Schedule.uniform(SPEC, 2)


@pytest.fixture
def gpu(monkeypatch) -> SimpleNamespace:
    """Takes the CPU for a device that captures: a graph is the same work once more, in a fourth of the time."""
    state = SimpleNamespace(now=0.0, replaying=False, captured=0, replayed=0, broken=False, opened=0, room=None)

    def capture(work, device) -> SimpleNamespace:
        if state.broken:
            raise RuntimeError("operation not permitted when stream is capturing")
        state.captured += 1

        def replay() -> None:
            state.replaying, state.replayed = True, state.replayed + 1
            work()
            state.replaying = False

        return SimpleNamespace(replay=replay)

    clock = SimpleNamespace(perf_counter=lambda: state.now, monotonic=lambda: state.now)
    for module in ("evaluation.replays", "evaluation.benchmark", "backends.choose"):
        monkeypatch.setattr(f"ddt_accel.{module}.time", clock)
    for module in ("sampling.trajectory", "evaluation.benchmark", "backends.choose"):
        monkeypatch.setattr(f"ddt_accel.{module}.captures", lambda device: True)
    monkeypatch.setattr("ddt_accel.sampling.trajectory.capture", capture)
    return state


class Clocked(TorchBackend):
    """Whose every call takes `taken` seconds of the host, or a fourth of that in a graph."""

    def __init__(self, model, state: SimpleNamespace, taken: float = 4.0, capturable: bool = True) -> None:
        super().__init__(model)
        self.state, self.taken, self.capturable = state, taken, capturable

    def open(self, batch: int, latent_shape: tuple[int, int, int], slots: int, **given) -> TorchSession:
        self.state.opened += 1
        if self.state.room is not None and self.state.opened > self.state.room:
            self.state.room = None
            raise torch.OutOfMemoryError("CUDA out of memory.")
        session = super().open(batch, latent_shape, slots, **given)
        for name in ("encode", "decode"):
            setattr(session, name, self._moving(getattr(session, name)))
        return session

    def _moving(self, call):
        def moving(*arguments) -> None:
            self.state.now += self.taken / 4 if self.state.replaying else self.taken
            call(*arguments)

        return moving


def drawn(model, schedule: Schedule, count: int) -> torch.Tensor:
    noise, labels = draw_noise(SHAPE, seed=3, indices=range(count)), draw_labels(4, seed=3, indices=range(count))
    return sample(model, schedule, noise, labels)


def test_replays_are_timed_and_calls_beside_them(gpu, tiny_model_path) -> None:
    model = load_model(tiny_model_path)
    schedules = {"unshared": Schedule.full(SPEC), "shared": SHARED}
    where = {"latent_shape": SHAPE, "num_images": 5, "seed": 3, "batch_size": 2}
    (unshared, shared), latents = measure(Clocked(model, gpu), schedules, **where)
    # Three batches, of 2, 2 and 1: of 4 or 2 encoder runs and 4 decoder runs each.
    assert (unshared.seconds, unshared.call_seconds) == pytest.approx((3 * 8 * 1 / 5, 3 * 8 * 4 / 5))
    assert (shared.seconds, shared.call_seconds) == pytest.approx((3 * 6 * 1 / 5, 3 * 6 * 4 / 5))
    assert (shared.encoder_seconds, shared.decoder_seconds) == pytest.approx((3 * 2 / 5, 3 * 4 / 5))
    assert shared.speedup == pytest.approx(8 / 6)
    assert gpu.captured == 4  # each schedule once for either size
    for name, schedule in schedules.items():
        torch.testing.assert_close(latents[name], drawn(model, schedule, 5))
    costs = measured_costs(unshared, SPEC, shared, SHARED, "", counted_of(Clocked(model, gpu), SHAPE))
    assert costs.of(SHARED) == pytest.approx(shared.seconds)


def test_what_cannot_be_captured_is_timed_as_it_is_drawn(gpu, tiny_model_path) -> None:
    model = load_model(tiny_model_path)
    where = {"latent_shape": SHAPE, "num_images": 4, "seed": 3, "batch_size": 2}
    (row,), _ = measure(Clocked(model, gpu, capturable=False), {"a": SHARED}, **where)
    assert (row.seconds, row.call_seconds) == (2 * 6 * 4 / 4, None)
    noisy = Schedule.full(SamplingSpec(num_steps=3, solver="sde", guidance=1.5))
    (row,), _ = measure(Clocked(model, gpu), {"a": noisy}, **where)
    assert (row.seconds, row.call_seconds) == (2 * 6 * 4 / 4, None)
    gpu.broken = True
    with pytest.warns(UserWarning, match="runs without a CUDA graph: operation not permitted") as warned:
        (row,), latents = measure(Clocked(model, gpu), {"a": SHARED}, **where)
    assert (row.seconds, row.call_seconds, len(warned)) == (2 * 6 * 4 / 4, None, 1)
    torch.testing.assert_close(latents["a"], drawn(model, SHARED, 4))


def test_a_stochastic_trajectory_draws_the_noise_of_its_own_images(gpu, tiny_model_path) -> None:
    """Also where a trajectory that was prepared for others is run once more."""
    model = load_model(tiny_model_path)
    noisy = Schedule.full(SamplingSpec(num_steps=3, solver="sde", guidance=1.5))
    where = {"latent_shape": SHAPE, "num_images": 4, "seed": 3}
    _, apart = measure(Clocked(model, gpu), {"a": noisy}, batch_size=2, **where)
    _, together = measure(Clocked(model, gpu), {"a": noisy}, batch_size=4, **where)
    torch.testing.assert_close(apart["a"], together["a"], atol=1e-5, rtol=1e-4)


def test_only_what_fits_into_memory_is_kept(gpu, tiny_model_path) -> None:
    model = load_model(tiny_model_path)
    replays, labels = Replays(Clocked(model, gpu)), torch.tensor([0, 3])
    noise = draw_noise(SHAPE, seed=3, indices=range(2))
    full = Schedule.full(SPEC)
    replays.take("shared", compile_program(SHARED), noise, labels)
    assert len(replays._kept) == 1
    gpu.room = gpu.opened
    latents, seconds, by_call = replays.take("full", compile_program(full), noise, labels)
    assert (seconds, by_call) == (8, 32)
    assert set(replays._kept) == {("full", 2)}
    torch.testing.assert_close(latents, sample(model, full, noise, labels))
    gpu.room = gpu.opened
    Replays.with_room(replays, lambda: Clocked(model, gpu).open(2, SHAPE, 1))
    assert not replays._kept
    gpu.room = gpu.opened
    with pytest.raises(torch.OutOfMemoryError):  # which nothing but itself takes memory from
        replays.take("full", compile_program(full), noise, labels)


@pytest.mark.filterwarnings("ignore:.*without a CUDA graph")
def test_a_capture_that_lacked_memory_is_tried_alone(gpu, tiny_model_path) -> None:
    model = load_model(tiny_model_path)
    replays, labels = Replays(Clocked(model, gpu)), torch.tensor([0, 3])
    noise, program = draw_noise(SHAPE, seed=3, indices=range(2)), compile_program(SHARED)
    replays.take("first", program, noise, labels)
    gpu.broken = True
    before = gpu.opened
    assert replays.take("second", program, noise, labels)[2] is None
    assert gpu.opened == before + 2
    replays.take("third", program, noise, labels)
    assert gpu.opened == before + 3  # which is not hoped for again


def test_auto_goes_by_what_a_sampler_does(gpu, tiny_model_path) -> None:
    """The host of one is slow, which a graph does not show; the other cannot be captured."""
    model = load_model(tiny_model_path)
    candidates = {"graph": lambda: Clocked(model, gpu), "calls": lambda: Clocked(model, gpu, 2.0, capturable=False)}
    seconds, _ = measure_all(candidates, SHAPE, 2)
    assert seconds == {"graph": 6 * 1, "calls": 6 * 2}
    both = GuidedBackend(Clocked(model, gpu), Clocked(model, gpu, 8.0))
    assert seconds_a_refresh(both, SHAPE, 2) == 6 * 1 + 6 * 2


def test_on_a_cpu_auto_measures_calls(gpu, tiny_model_path, monkeypatch) -> None:
    monkeypatch.setattr("ddt_accel.backends.choose.captures", lambda device: False)
    assert seconds_a_refresh(Clocked(load_model(tiny_model_path), gpu), SHAPE, 2) == 6 * 4
    assert gpu.captured == 0


def test_the_report_says_what_the_host_costs(gpu, tiny_model_path, tmp_path) -> None:
    model = load_model(tiny_model_path)
    calibration = calibrate(model, SPEC, num_samples=2, latent_shape=SHAPE)
    study = conduct(
        Clocked(model, gpu), calibration, solve(calibration, 2), model_name="tiny", latent_shape=SHAPE, num_images=4,
        curve_images=2, seed=1, batch_size=2, on_stage=silent,
    )  # fmt: skip
    page, text, numbers = write_report(study, tmp_path)
    row = next(row for row in study.measurements if row.name == study.headline)
    assert row.call_seconds == pytest.approx(4 * row.seconds)
    for written in (page, text):
        assert f"Call by call the headline takes {row.call_seconds * 1000:.1f} ms" in written.read_text()
    assert json.loads(numbers.read_text())["measurements"][0]["call_seconds"] == 4 * study.measurements[0].seconds


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_graphs_are_timed() -> None:
    model = load_model("cifar10").cuda()
    schedules = {"unshared": Schedule.full(SPEC), "shared": SHARED}
    rows, latents = measure(
        TorchBackend(model), schedules, latent_shape=(3, 32, 32), num_images=3, seed=3, batch_size=2
    )
    noise, labels = draw_noise((3, 32, 32), seed=3, indices=range(3)), draw_labels(10, seed=3, indices=range(3))
    for row in rows:
        assert row.call_seconds is not None
        assert 0 < row.encoder_seconds + row.decoder_seconds + row.forecast_seconds <= row.seconds
        expected = sample(model, schedules[row.name], noise, labels).cpu()
        torch.testing.assert_close(latents[row.name], expected, atol=1e-3, rtol=1e-3)
    assert seconds_a_refresh(TorchBackend(model), (3, 32, 32), 2, within=0.1) > 0
