"""The sampler as one thing to call, against `sample` on the same noise."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from ddt_accel import (
    Sampler,
    SamplingSpec,
    Schedule,
    draw_noise,
    draw_step_noise,
    load_model,
    open_backend,
    sample,
)
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.errors import ConfigError, MismatchError, NumericsError

SHAPE = (3, 8, 8)
CUDA = SimpleNamespace(device=torch.device("cuda"))
SCHEDULE = Schedule(
    spec=SamplingSpec(num_steps=6, guidance=1.5), refresh_steps=(0, 2, 4), forecasts={3: ((0, -0.5), (2, 1.5))},
    unconditional_steps=(1, 3), unconditional_forecasts={4: ((1, -1.0), (3, 2.0)), 5: ((1, 0.5), (3, 0.5))},
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return load_model(tiny_model_path)


def expected(model, labels: list[int], seeds: list[int]) -> torch.Tensor:
    noise = torch.cat([draw_noise(SHAPE, seed=seed, indices=[0]) for seed in seeds])
    return sample(model, SCHEDULE, noise, torch.tensor(labels))


def test_an_image_depends_on_its_label_and_seed_alone(model, exports, traced) -> None:
    """Through PyTorch and ONNX Runtime, in one batch or several, and again with the buffers of the last call."""
    exported = [open_backend(exports(kind)) for kind in ("fp32", "forecasts", "states")]
    labels, seeds = [0, 3, 1, 1, 2], [7, 8, 9, 10, 11]
    whole = expected(model, labels, seeds)
    for networks in (model, TorchBackend(model), CompiledBackend(model, precision="fp32"), *exported):
        given = {} if networks is model or hasattr(networks, "latent_shape") else {"latent_shape": SHAPE}
        sampler = Sampler(networks, SCHEDULE, batch_size=2, **given)
        for _ in range(2):
            torch.testing.assert_close(sampler(labels, 7), whole, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(sampler(labels[1:3], seeds[1:3]), whole[1:3], atol=1e-4, rtol=1e-4)
        assert set(sampler._trajectories) == {2}  # the last image is drawn twice rather than by itself


def test_buffers_are_made_once(model) -> None:
    sampler = Sampler(model, SCHEDULE)
    sampler([0, 1], 0)
    (trajectory,) = sampler._trajectories.values()
    address = trajectory.latents.data_ptr()
    first = sampler([2, 3], 5)
    assert sampler._trajectories[2] is trajectory
    assert trajectory.latents.data_ptr() == address
    kept = first.clone()
    sampler([0, 1], 0)
    assert torch.equal(first, kept)  # what was returned is no buffer


@pytest.mark.parametrize("solver", ["euler", "sde"])
def test_noise_that_is_given_ends_where_the_function_ends(model, solver: str) -> None:
    """Bit for bit, in buffers that another batch has used before; with the noise of every step, where there is any."""
    spec = SamplingSpec(num_steps=5, solver=solver, guidance=1.5)
    sampler = Sampler(model, Schedule.uniform(spec, 3))
    for indices in (range(3), range(4, 7), range(7, 8)):
        noise = draw_noise(SHAPE, seed=9, indices=indices)
        labels = torch.tensor([index % 4 for index in indices])
        step_noise = draw_step_noise(SHAPE, seed=9, indices=indices)
        drawn = sampler.draw(noise, labels, step_noise=step_noise)
        assert torch.equal(drawn, sample(model, sampler.schedule, noise, labels, step_noise=step_noise))


def test_a_stochastic_sampler_takes_all_its_noise_from_the_seeds(model) -> None:
    sampler = Sampler(model, Schedule.uniform(SamplingSpec(num_steps=4, solver="sde"), 2), batch_size=2)
    drawn = sampler([0, 1, 2], [5, 6, 7])
    for k, seed in enumerate((5, 6, 7)):
        step_noise = draw_step_noise(SHAPE, seed=seed, indices=[0])
        noise = draw_noise(SHAPE, seed=seed, indices=[0])
        alone = sample(model, sampler.schedule, noise, torch.tensor([k]), step_noise=step_noise)
        torch.testing.assert_close(drawn[k : k + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("device", "sizes"), [("cpu", {3, 2}), ("cuda", {3})])
def test_a_last_batch_is_filled_up_where_another_size_costs_more(model, device: str, sizes: set[int]) -> None:
    """On a GPU, of which this backend only says that it is one, there is one size; on a CPU no batch of one."""

    class Placed(TorchBackend):
        def open(self, batch: int, latent_shape: tuple[int, int, int], slots: int, **given):
            seen.add(batch)
            return super().open(batch, latent_shape, slots, **given)

    seen: set[int] = set()
    sampler = Sampler(Placed(model), SCHEDULE, latent_shape=SHAPE, batch_size=3)
    labels, seeds = [0, 3, 1, 1], [7, 8, 9, 10]
    if device == "cuda":
        sampler._filled = lambda count: Sampler._filled(SimpleNamespace(batch_size=3, backend=CUDA), count)
    decoded = []
    sampler.decode = lambda latents: decoded.append(len(latents)) or latents
    torch.testing.assert_close(sampler(labels, seeds), expected(model, labels, seeds))
    assert decoded == [3, 1]  # what fills up is not decoded
    assert seen == sizes


def test_images_are_decoded_and_steps_are_called_back(model) -> None:
    seen = []

    def watch(sampler: Sampler, k: int, time: float, tensors: dict) -> None:
        seen.append((k, time, tensors["latents"].clone()))

    sampler = Sampler(model, SCHEDULE, decode=lambda latents: latents.mean((1, 2, 3)))
    means = sampler([1, 2], [3, 4], callback=watch)
    whole = expected(model, [1, 2], [3, 4])
    torch.testing.assert_close(means, whole.mean((1, 2, 3)), atol=1e-5, rtol=1e-4)
    assert [(k, time) for k, time, _ in seen] == [
        (k, pytest.approx(time)) for k, time in enumerate(SCHEDULE.spec.times)
    ]
    torch.testing.assert_close(seen[-1][2], whole, atol=1e-5, rtol=1e-4)
    stopped = Sampler(model, SCHEDULE)(
        [1], 3, callback=lambda s, k, t, tensors: {"latents": 0 * tensors["latents"]} if k == 5 else None
    )
    assert torch.equal(stopped, torch.zeros(1, *SHAPE))


def test_steps_are_taken_when_they_are_asked_for(model) -> None:
    """To the same end, bit for bit, also after a trajectory that was left halfway; an Euler step's estimate is the
    latents before it and all that its velocity leads to."""
    sampler = Sampler(model, SCHEDULE)
    noise, labels = draw_noise(SHAPE, seed=5, indices=range(2)), torch.tensor([0, 3])
    for step in sampler.steps(noise, labels):
        if step.index == 2:
            break
    before, times = noise, [*SCHEDULE.spec.times.tolist(), 1.0]
    for step in sampler.steps(noise, labels):
        assert step.time == pytest.approx(times[step.index])
        expected = before + (1 - step.time) * step.velocity
        torch.testing.assert_close(step.estimate(times[step.index + 1]), expected, atol=1e-5, rtol=1e-4)
        before = step.latents.clone()
    assert torch.equal(before, sample(model, SCHEDULE, noise, labels))


def test_what_is_not_finite_does_not_stay(model) -> None:
    """A callback that spoils a trajectory spoils that one only."""
    sampler = Sampler(model, SCHEDULE)
    whole = sampler([1, 2], 3)
    with pytest.raises(NumericsError):
        sampler([1, 2], 3, callback=lambda s, k, t, tensors: {"latents": tensors["latents"] / 0} if k == 1 else None)
    assert torch.equal(sampler([1, 2], 3), whole)


class Small(TorchBackend):
    """A device that runs out of memory at more than three images, in the middle of a trajectory or at once."""

    def __init__(self, model, fits: int) -> None:
        super().__init__(model)
        self.fits = fits

    def open(self, batch: int, latent_shape: tuple[int, int, int], slots: int, **given):
        if batch > self.fits + 2:
            raise torch.OutOfMemoryError("no room for buffers")
        session = super().open(batch, latent_shape, slots, **given)
        if batch > self.fits:
            session.decode = self.fail
        return session

    def fail(self, slot: int, rows: slice, width: float) -> None:
        raise torch.OutOfMemoryError("no room for activations")


@pytest.mark.parametrize(("fits", "said"), [(3, "one of 3 does"), (2, "one of 1 does"), (0, "one image does not")])
def test_out_of_memory_names_a_batch_that_fits(model, fits: int, said: str) -> None:
    sampler = Sampler(Small(model, fits), SCHEDULE, latent_shape=SHAPE, batch_size=6)
    with pytest.raises(ConfigError, match=said):
        sampler([0, 1, 2, 3, 0, 1], 0)


def test_buffers_of_other_batches_are_given_up_before_a_batch_is_refused(model) -> None:
    """A device with room for three images in all."""

    class Crowded(TorchBackend):
        def open(self, batch: int, latent_shape: tuple[int, int, int], slots: int, **given):
            if batch + sum(sampler._trajectories) > 3:
                raise torch.OutOfMemoryError("no room beside the others")
            return super().open(batch, latent_shape, slots, **given)

    sampler = Sampler(Crowded(model), SCHEDULE, latent_shape=SHAPE, batch_size=4)
    for count in (1, 2, 3):
        assert len(sampler(list(range(count)), 0)) == count
    with pytest.raises(ConfigError, match="one of 2 does"):
        sampler([0, 1, 2, 3], 0)


def test_impossible_calls_are_refused(model) -> None:
    sampler = Sampler(model, SCHEDULE)
    for labels, seeds in (
        ([0, 1], [1]),
        ([], []),
        ([9], [0]),
        ([0], [-1]),
        ([[0]], [1]),
        (3, 7),
        (["cat"], 0),
        ([0], [0.5]),
        ([0], 0.5),
    ):
        with pytest.raises(ConfigError):
            sampler(labels, seeds)
    with pytest.raises(ConfigError, match="callback"):
        sampler([0], 0, callback=lambda s, k, t, tensors: {"latents": torch.zeros(1)})
    with pytest.raises(ConfigError, match="batch_size"):
        Sampler(model, SCHEDULE, batch_size=0)
    nameless = copy.copy(model)
    nameless.source = None
    with pytest.raises(ConfigError, match="latent_shape"):
        Sampler(TorchBackend(nameless), SCHEDULE)
    with pytest.raises(MismatchError):
        Sampler(model, Schedule(spec=SCHEDULE.spec, refresh_steps=(0,), checkpoint_sha256="0" * 64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("kind", [TorchBackend, CompiledBackend])
def test_a_trajectory_that_was_captured_draws_the_same(kind) -> None:
    """First as single calls, then as one CUDA graph, also after a callback gave up halfway."""
    model = load_model("cifar10").cuda()
    schedule = Schedule(
        spec=SamplingSpec(num_steps=6, solver="ab2"), refresh_steps=(0, 2, 3), forecasts={4: ((2, -1.0), (3, 2.0))}
    )
    sampler = Sampler(kind(model), schedule)

    def giving_up(sampler, step: int, time: float, tensors) -> None:
        if step == 2:
            raise KeyboardInterrupt

    single = sampler([1, 2, 3], 5).clone()
    captured = [sampler([1, 2, 3], 5).clone(), sampler([4, 5, 6], 9).clone()]
    with pytest.raises(KeyboardInterrupt):
        sampler([1, 2, 3], 5, callback=giving_up)
    captured.append(sampler([1, 2, 3], 5).clone())
    assert sampler._trajectories[3]._graph is not None
    torch.testing.assert_close(captured[0], single)
    torch.testing.assert_close(captured[2], single)
    torch.testing.assert_close(captured[1], Sampler(kind(model), schedule)([4, 5, 6], 9))
