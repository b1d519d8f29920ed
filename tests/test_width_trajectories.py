"""Schedules that run networks narrow, against a loop written out over the masked network."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_widths import random_network
from torch import Tensor

from ddt_accel import SamplingSpec, Schedule, draw_labels, draw_noise, export, open_backend, sample
from ddt_accel.artifacts import read_json
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError
from ddt_accel.evaluation.benchmark import measure
from ddt_accel.evaluation.costs import Costs, counted_costs, counted_of, kept_costs
from ddt_accel.evaluation.timing import timed_costs
from ddt_accel.fitting.fit import Fitter
from ddt_accel.fitting.fit_spec import FitSpec
from ddt_accel.fitting.scalars import Scalars, widened
from ddt_accel.fitting.trajectory import fitted_trajectory
from ddt_accel.networks.dynamic.widths import narrow, width_masks
from ddt_accel.networks.saving import save_network
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.offering import at_hand
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import Trajectory, state_slots
from ddt_accel.workspace import Workspace

SHAPE, SEED, COUNT = (3, 8, 8), 3, 3
SPEC = SamplingSpec(num_steps=8, guidance=1.5, guidance_interval=(0.3, 0.9))
STEPS = (0, 2, 4, 6)
WIDTHS = {0: 0.75, 2: 0.5, 6: 0.5}
# The narrow refresh at 2 is taken as it is, those at 0 and 6 are corrected; 4 is complete.
FORECASTS = {
    0: ((0, 0.9),), 1: ((0, 0.8),), 3: ((0, -0.3), (2, 1.2)), 5: ((2, 0.4), (4, 0.7)), 6: ((4, 0.3), (6, 0.8)),
    7: ((4, 0.5), (6, 0.25)),
}  # fmt: skip
DECODERS = {0: 0.5, 3: 0.75, 6: 0.5, 7: 0.5}


@pytest.fixture(scope="module")
def network() -> SplitNetwork:
    return random_network("ddt")


@pytest.fixture(scope="module")
def short() -> SplitNetwork:
    """A block each, for what takes seconds a block: a width is exported, or compiled, like any other."""
    return random_network("ddt", num_blocks=2, num_encoder_blocks=1)


@pytest.fixture(scope="module")
def schedule(network) -> Schedule:
    return schedule_of(network)


def schedule_of(network: SplitNetwork) -> Schedule:
    """With a mean trajectory, so that every constant counts."""
    generator = np.random.default_rng(0)
    size = network.config.modulation_size

    def means(rows: int) -> np.ndarray:
        return (0.3 * generator.standard_normal((rows, size))).astype(np.float32)

    return Schedule(
        spec=SPEC,
        refresh_steps=STEPS,
        forecasts=FORECASTS,
        encoder_widths=WIDTHS,
        decoder_widths=DECODERS,
        mean_modulations=means(8),
        narrow_mean_modulations=means(3),
    )


def noises() -> tuple[Tensor, Tensor]:
    indices = range(COUNT)
    return draw_noise(SHAPE, seed=SEED, indices=indices), draw_labels(5, seed=SEED, indices=indices)


@torch.inference_mode()
def written_out(network: SplitNetwork, schedule: Schedule) -> Tensor:
    """Euler's method on masked networks, one branch after the other."""
    config, blocks = network.config, network.config.num_encoder_blocks
    x, labels = noises()
    times, weights = [*SPEC.times.tolist(), 1.0], SPEC.guidance_weights.tolist()
    means, narrow_means = schedule.mean_modulations, schedule.narrow_mean_modulations
    held: list[dict[int, Tensor]] = [{}, {}]
    for k in range(8):
        velocities = []
        for side, y in enumerate((labels, torch.full_like(labels, config.null_label))):
            width = schedule.encoder_widths.get(k, 1.0)
            if k in STEPS:
                masks = width_masks(config, width, 1.0)[:blocks]
                state = network.encode(x, torch.full((COUNT,), times[k]), y, masks)
                held[side][k] = network.modulations(state)
            if k in STEPS and k not in schedule.forecasts:
                modulations = held[side][k]
            else:
                row = schedule.forecasts.get(k, ((max(step for step in STEPS if step <= k), 1.0),))
                modulations = sum(w * held[side][r] for r, w in row)
                if means is not None:
                    mean_of = dict(enumerate(means)) | dict(zip(schedule.encoder_widths, narrow_means, strict=True))
                    modulations = modulations + torch.from_numpy(means[k] - sum(w * mean_of[r] for r, w in row))
            masks = width_masks(config, 1.0, schedule.decoder_widths.get(k, 1.0))[blocks:]
            velocities.append(network.decode_modulated(x, modulations, masks))
        conditional, unconditional = velocities
        v = conditional if weights[k] == 1 else unconditional + weights[k] * (conditional - unconditional)
        x = x + (times[k + 1] - times[k]) * v
    return x


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert (ours - theirs).norm() < tolerance * theirs.norm()


@pytest.mark.parametrize("cache", ["modulations", "state"])
def test_a_trajectory_with_widths_is_that_of_masked_networks(network, schedule, cache) -> None:
    expected = written_out(network, schedule)
    close(sample(TorchBackend(network, cache=cache), schedule, *noises()), expected, 1e-5)
    # It would be another without any one of them.
    for changed in (
        replace(schedule, encoder_widths={**WIDTHS, 2: 0.75}),
        replace(schedule, decoder_widths={**DECODERS, 7: 0.75}),
        replace(schedule, forecasts={**FORECASTS, 6: ((4, 0.2), (6, 0.8))}),
        replace(schedule, narrow_mean_modulations=schedule.narrow_mean_modulations[::-1].copy()),
    ):
        assert (sample(network, changed, *noises()) - expected).norm() > 1e-4 * expected.norm()


@pytest.mark.parametrize("sources", [0, 2])
def test_exports_hold_a_network_for_each_width(cli, short, tmp_path, sources) -> None:
    manifest = export(short, tmp_path, sources=sources, cache="state" if sources else "modulations")
    names = {f"{kind}{width}.onnx" for kind in ("encoder", "decoder") for width in ("", "-0.75", "-0.5")}
    assert set(manifest.files) == names
    assert set(manifest.parity) == {name.removesuffix(".onnx") for name in names}
    assert read_json(tmp_path / "manifest.json", "ddt-accel export", 2)["widths"] == [1.0, 0.75, 0.5]
    backend = open_backend(tmp_path)
    assert backend.widths == (1.0, 0.75, 0.5)
    told = cli("inspect", tmp_path).out
    assert "1, 0.75, 0.5" in told
    assert "decoder-0.5.onnx" in told
    schedule = schedule_of(short)
    close(sample(backend, schedule, *noises()), written_out(short, schedule), 1e-4)
    (tmp_path / "decoder-0.5.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"decoder-0\.5"):
        open_backend(tmp_path)


def test_compiled_networks_take_widths(short) -> None:
    """At one width each, for PyTorch compiles a program for every width and number of states that are read."""
    backend, schedule = CompiledBackend(short, precision="fp32"), schedule_of(short)
    schedule = replace(
        schedule, encoder_widths=dict.fromkeys(WIDTHS, 0.5), decoder_widths=dict.fromkeys(range(8), 0.75)
    )
    close(sample(backend, schedule, *noises()), written_out(short, schedule), 1e-4)


def test_narrow_networks_share_the_memory_of_the_complete_one(network) -> None:
    narrower = narrow(network, 0.5)
    for name in ("x_embedder.proj.weight", "blocks.0.adaLN_modulation.0.weight", "blocks.3.mlp.w1.weight"):
        assert narrower.get_parameter(name).data_ptr() == network.get_parameter(name).data_ptr()
    assert (
        narrower.get_parameter("blocks.0.mlp.w2.weight").data_ptr()
        == network.get_parameter("blocks.0.mlp.w2.weight").data_ptr()
    )


def test_files_say_which_width_runs_when(network, schedule, tmp_path) -> None:
    schedule.save(tmp_path / "narrow.json")
    read = Schedule.load(tmp_path / "narrow.json")
    assert read == schedule
    for name, means in schedule.means.items():
        np.testing.assert_array_equal(read.means[name], means)
    assert read.widths == (0.75, 0.5)
    assert '"version": 5' in (tmp_path / "narrow.json").read_text()
    Schedule.uniform(SPEC, 3).save(tmp_path / "complete.json")
    complete = (tmp_path / "complete.json").read_text()
    assert '"version": 4' in complete
    assert "width" not in complete


def test_a_corrected_refresh_keeps_its_state_as_it_is(network, schedule) -> None:
    """Later forecasts read the narrow state, the decoder the corrected one; a slot more holds the latter."""
    program = compile_program(schedule)
    trajectory = Trajectory(TorchBackend(network), program, *noises())
    for k in range(7):
        trajectory.step(k)
    kept, read = trajectory._modulation_slots[6], trajectory._read_slots[6]
    assert kept != read
    assert read <= state_slots(program)
    assert not torch.equal(trajectory.session.slots[kept], trajectory.session.slots[read])


def test_networks_are_timed_and_compared_at_their_widths(network, schedule) -> None:
    unshared = Schedule.full(SPEC)
    measured, latents = measure(
        TorchBackend(network), {"unshared": unshared, "narrow": schedule},
        latent_shape=SHAPE, num_images=COUNT, seed=SEED, batch_size=2,
    )  # fmt: skip
    close(latents["narrow"], written_out(network, schedule), 1e-5)
    assert measured[1].encoder_seconds > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder_widths": {1: 0.5}, "forecasts": {}}, r"steps \[1\], at which it does not run"),
        ({"decoder_widths": {8: 0.5}}, r"steps \[8\], at which it does not run"),
        ({"encoder_widths": {0: 1.5, 2: 0.5, 6: 0.5}}, "shares between 0 and 1"),
        ({"forecasts": {4: ((0, 1.0),)}}, "step 4, which is no reuse step"),
        ({"narrow_mean_modulations": None}, "narrow_mean_modulations go with a mean trajectory"),
        ({"narrow_mean_modulations": np.zeros((2, 416), np.float32)}, r"expected finite float32 \[3, M\]"),
        ({"narrow_mean_modulations": np.zeros((3, 5), np.float32)}, "are of different networks"),
        ({"unconditional_steps": (0, 4)}, "Both branches run at the same widths"),
    ],
)  # fmt: skip
def test_widths_that_cannot_be_run(schedule, changes, said) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(schedule, **changes)


def test_a_network_without_these_widths_is_refused(network, schedule) -> None:
    whole = random_network("ddt")
    whole.source = replace(whole.source, widths=())
    with pytest.raises(MismatchError, match=r"at width 0\.5, and torch has 1; take a schedule without widths"):
        sample(whole, schedule, *noises())


def test_a_file_keeps_widths_and_another_program_sees_them(network, schedule, tmp_path) -> None:
    """What narrow schedules are for is part of a saved network, too."""
    save_network(network, tmp_path / "nested.safetensors")
    from ddt_accel import load_model

    loaded = load_model(tmp_path / "nested.safetensors", latent_shape=SHAPE)
    assert TorchBackend(loaded).widths == (1.0, 0.75, 0.5)
    close(sample(loaded, replace(schedule, checkpoint_sha256=None), *noises()), written_out(network, schedule), 1e-5)


def test_a_schedule_costs_what_its_networks_do(network, schedule) -> None:
    """Against runs and multiply-adds counted by hand; both branches run at the guided steps, and at refreshes read."""
    complete, most, half = (narrow(network, width).config.multiply_adds(SHAPE) for width in (1.0, 0.75, 0.5))
    costs = counted_of(TorchBackend(network), SHAPE)
    assert costs.at(0.5).encoder == half.encoder + half.modulations
    assert costs.at(0.75).decoder == most.decoder
    guided = SPEC.guidance_weights != 1
    at = {1.0: complete, 0.75: most, 0.5: half}
    program = compile_program(schedule)
    encoder = decoder = 0.0
    for k, evaluation in enumerate(program.evaluations):
        if k in STEPS:
            counted = at[WIDTHS.get(k, 1.0)]
            encoder += len(evaluation.branches) * (counted.encoder + counted.modulations)
        decoder += (2 if guided[k] else 1) * at[DECODERS.get(k, 1.0)].decoder
    assert costs.parts(program)[0][:2] == pytest.approx((encoder, decoder))
    with pytest.raises(MismatchError, match=r"at width 0\.[57]"):
        counted_costs(network.config, SHAPE).of(schedule)


def test_costs_of_widths_are_kept(network, tmp_path) -> None:
    costs = timed_costs(TorchBackend(network), SPEC, SHAPE, 1, "here")
    assert [one.width for one in costs.narrow] == [0.75, 0.5]
    costs.save(tmp_path / "costs.json")
    assert Costs.load(tmp_path / "costs.json") == costs


def test_fits_see_the_same_trajectory(network, schedule) -> None:
    """Gradients flow through what samplers run, also to the rows of corrected refreshes."""
    bias = network.modulation_bias.numpy()
    scalars = Scalars(schedule, bias, sources=1)
    widths = {width: narrow(network, width) for width in schedule.widths}
    end = fitted_trajectory(network, scalars, *noises(), narrow=widths).end
    close(end.detach(), written_out(network, schedule), 1e-5)
    end.square().mean().backward()
    moved = scalars.forecasts.grad[0, 6]
    assert moved[4] != 0
    assert moved[6] != 0
    assert (moved[[0, 1, 2, 3, 5, 7]] == 0).all()
    close(sample(network, scalars.schedule(), *noises()), written_out(network, schedule), 1e-5)


def test_a_fit_keeps_widths_and_corrections(network, schedule) -> None:
    one = replace(schedule, forecasts={**FORECASTS, 6: ((6, 0.8),)})
    wide = widened(one, network.modulation_bias.numpy(), 2)
    assert wide.forecasts[6] == ((4, 0.0), (6, 0.8))
    assert not {2, 4} & set(wide.forecasts)  # taken as they are
    tiny = FitSpec(iterations=2, images=2, held_out=4, batch_size=2, reference_steps=16)
    found = Fitter(network, schedule, tiny).run()
    assert found.schedule.encoder_widths == WIDTHS
    assert found.schedule.decoder_widths == DECODERS


def test_a_refresh_may_be_corrected_to_an_older_state_alone(network) -> None:
    """Whatever the row says: then the narrow run is for later steps, or for nothing."""
    rows = dict.fromkeys(range(1, 8), ((0, 1.0),))
    held = Schedule(spec=SPEC, refresh_steps=(0,))
    wasted = Schedule(spec=SPEC, refresh_steps=(0, 3), encoder_widths={3: 0.5}, forecasts=rows)
    close(sample(network, wasted, *noises()), sample(network, held, *noises()), 1e-6)
    scalars = Scalars(wasted, network.modulation_bias.numpy(), sources=1)
    end = fitted_trajectory(network, scalars, *noises(), narrow={0.5: narrow(network, 0.5)}).end
    close(end.detach(), sample(network, held, *noises()), 1e-5)


@pytest.mark.parametrize(
    "written", [None, [0.5], {"x": 0.5}, {"03": 0.5}, {"2": "half"}, {"2": None}, {"2": float("inf")}]
)
def test_files_with_other_widths_are_unusable(schedule, tmp_path, written) -> None:
    path = tmp_path / "schedule.json"
    schedule.save(path)
    content = json.loads(path.read_text())
    del content["checksum"]
    path.write_text(json.dumps(content | {"encoder_widths": written}))
    with pytest.raises(ArtifactError, match=r"schedule\.json is not .*(encoder_widths|JSON)"):
        Schedule.load(path)


def test_schedules_that_a_network_cannot_run_are_not_offered(network, schedule, tmp_path) -> None:
    backend = TorchBackend(network)
    own = replace(schedule, checkpoint_sha256=backend.checkpoint_sha256)
    own.save(tmp_path / "narrow.json")
    replace(Schedule.uniform(SPEC, 3), checkpoint_sha256=backend.checkpoint_sha256).save(tmp_path / "plain.json")
    said: list[str] = []
    assert {one.name for one in at_hand(backend, Workspace(tmp_path), [], said.append)} == {"narrow", "plain"}
    assert said == []
    backend.widths = (1.0,)
    assert {one.name for one in at_hand(backend, Workspace(tmp_path), [], said.append)} == {"plain"}
    assert said == ["narrow is left out: it runs a network at width 0.5, which torch has not."]


def test_costs_of_a_time_before_widths_are_not_used(network, schedule, tmp_path) -> None:
    backend, said = TorchBackend(network), []
    costs = counted_costs(network.config, SHAPE).named(backend)
    costs.save(tmp_path / "costs.json")
    assert kept_costs(tmp_path / "costs.json", "0", said.append) == costs
    assert kept_costs(tmp_path / "costs.json", "0", said.append, widths=backend.widths) is None
    assert "was measured without its narrow widths" in said[0]
    assert not costs.cover(schedule.widths)
    assert counted_of(backend, SHAPE).cover(schedule.widths)
