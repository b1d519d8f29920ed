"""The trajectory loop, written once for every sampler, schedule and backend.

at a refresh k:    m_k = modulations(encode(x, t_k, y))
otherwise:         m_k = Σ_r F[k, r] m_r + c_k             either branch by its own refreshes and forecasts
                                                           (so, too, at a narrow refresh that is corrected)
v_k = v_u + w_k (v_c − v_u),   v = decode(x, m_k)
x   ← a_k x + Σ_j B[k, j] v_j + n_k ξ_k
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ddt_accel.errors import ArtifactError, ConfigError, MismatchError, NumericsError
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.capture import capture, captures, cause_of
from ddt_accel.sampling.integrators import Update
from ddt_accel.sampling.noise import ImageRange, draw_labels, draw_noise
from ddt_accel.sampling.program import Branch, Evaluation, Program, null_label


class Trajectory:
    """One batch on its way along a program: `step(0)`, `step(1)`, …; `latents` is where it is.

    A step is `evaluate`, then `advance`; who has other weights in mind calls them one by one.

    `step_noise(k)` gives ξ_k [B, C, H, W], for stochastic samplers only.
    """

    def __init__(
        self,
        backend: Backend,
        program: Program,
        noise: Tensor,
        labels: Tensor,
        *,
        step_noise: Callable[[int], Tensor] | None = None,
    ) -> None:
        noise, labels = _checked(backend, noise, labels)
        guided = any(evaluation.unconditional is not None for evaluation in program.evaluations)
        null = null_label(backend.config) if guided and backend.guide is None else None
        if program.stochastic and step_noise is None:
            raise ConfigError("A stochastic sampler adds noise at every step; give step_noise, a function of the step.")
        self.program, self.step_noise, self.batch = program, step_noise, len(noise)
        check_widths(backend, program)
        self._velocity_slots, self._modulation_slots, self._read_slots = _plan(program)
        slots = _kept(program, self._modulation_slots)
        with torch.inference_mode(False):  # buffers outlive the mode that the caller may be in
            self.session = session = backend.open(self.batch, (noise.shape[1], noise.shape[2], noise.shape[3]), slots)
            self._velocities = torch.empty(
                (1 + max(self._velocity_slots.values()), *noise.shape), device=backend.device
            )
        self._null = null
        self._backend, self._ran = backend, False
        self._constants = {
            (k, side): constant
            for k, evaluation in enumerate(program.evaluations)
            for side, branch in enumerate(evaluation.branches)
            if (constant := self._constant(branch)) is not None
        }
        wanted = [one.config.modulation_size for one in (backend, backend.guide or backend)]
        for (_, side), constant in self._constants.items():
            if len(constant) != wanted[side]:
                raise MismatchError(
                    f"The schedule's mean modulations are not the {wanted[side]} values of this network."
                )
        self.latents, self._copy = session.latents[: self.batch], session.latents[self.batch :]
        self._capturable = captures(backend.device) and backend.capturable and not program.stochastic
        self._graph: torch.cuda.CUDAGraph | None = None
        self.start(noise, labels)

    def start(self, noise: Tensor, labels: Tensor) -> None:
        """Back to the beginning, from other noise for other labels; a batch as large as the first."""
        noise, labels = _checked(self._backend, noise, labels)
        self.session.labels[: self.batch] = labels
        # Where nothing reads the unconditional rows, any label is as good.
        self.session.labels[self.batch :] = labels.to(self.session.labels) if self._null is None else self._null
        self.latents.copy_(noise)

    def run(self) -> None:
        """All evaluations; on a GPU as one CUDA graph from the second time on, where the backend allows.

        The first time everything is prepared that a graph cannot hold: compiled networks, bindings, constants.
        """
        if self._graph is None and self._ran and self._capturable:
            self._graph = self._captured()
        if self._graph is None:
            self._steps()
        else:
            self._graph.replay()
        self._ran = True

    @property
    def is_captured(self) -> bool:
        """Whether `run` replays a graph."""
        return self._graph is not None

    @property
    def is_settled(self) -> bool:
        """Whether `run` does nothing any more that a later one would not do, too: capturing, or what comes before."""
        return self._ran and (self._graph is not None or not self._capturable)

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        """None where it cannot be captured: what has run call by call still does."""
        try:
            return capture(self._steps, self._backend.device)
        except (RuntimeError, ArtifactError) as error:  # running out of memory is one of the former
            warnings.warn(f"{self._backend.name} runs without a CUDA graph: {cause_of(error)}", stacklevel=3)
            self._capturable = False
            return None

    def _steps(self) -> None:
        for k in range(len(self.program.evaluations)):
            self.step(k)

    def step(self, k: int) -> None:
        """Evaluation k of the program."""
        self.evaluate(k)
        self.advance(k, self.program.evaluations[k].update)

    def evaluate(self, k: int, reweighted: Evaluation | None = None) -> None:
        """The velocity of evaluation k where the latents are; or of one that forecasts from the same states with other
        weights."""
        session, batch, x = self.session, self.batch, self.latents
        evaluation = reweighted or self.program.evaluations[k]
        if len(evaluation.branches) == 2:
            self._copy.copy_(x)
        slot = self._read_slots[k]
        for side, (branch, rows) in enumerate(self._parts(evaluation)):
            if branch.encode:
                session.times.fill_(evaluation.time)
                session.encode(self._modulation_slots[k], rows, branch.width)
            if branch.corrected or (not branch.encode and evaluation.held is None):
                sources = [(self._modulation_slots[r], weight) for r, weight in branch.forecast]
                constant = self._constants.get((k, side)) if reweighted is None else self._constant(branch)
                session.forecast(slot, sources, constant, rows)
        session.decode(slot, slice(0, 2 * batch if evaluation.decode_both else batch), evaluation.width)

        v = self.velocity(k)
        conditional, unconditional = session.velocity[:batch], session.velocity[batch:]
        if evaluation.decode_both:
            torch.lerp(unconditional, conditional, evaluation.guidance, out=v)
        else:
            v.copy_(conditional)

    def velocity(self, k: int) -> Tensor:
        """[B, C, H, W]: that of evaluation k, until the program's last reading of it is past."""
        return self._velocities[self._velocity_slots[k]]

    def advance(self, k: int, update: Update) -> None:
        """Moves the latents on from evaluation k."""
        self._move(self.latents, k, update)

    def ahead(self, k: int, update: Update) -> Tensor:
        """Where `advance` would lead, [B, C, H, W]."""
        x = self.latents.clone()
        self._move(x, k, update)
        return x

    def _move(self, x: Tensor, k: int, update: Update) -> None:
        if update.scale != 1.0:
            x.mul_(update.scale)
        for j, weight in update.velocities:
            x.add_(self.velocity(j), alpha=weight)
        if update.noise and self.step_noise is not None:
            x.add_(self.step_noise(k).to(x), alpha=update.noise)

    def _constant(self, branch: Branch) -> Tensor | None:
        return None if branch.constant is None else torch.from_numpy(branch.constant).to(self._backend.device)

    def _parts(self, evaluation: Evaluation) -> list[tuple[Branch, slice]]:
        """What is done to which rows: at once where both branches do the same."""
        batch, conditional, unconditional = self.batch, evaluation.conditional, evaluation.unconditional
        if unconditional is None:
            return [(conditional, slice(0, batch))]
        if unconditional.does_as(conditional):
            return [(conditional, slice(0, 2 * batch))]
        return [(conditional, slice(0, batch)), (unconditional, slice(batch, 2 * batch))]

    def end(self) -> Tensor:
        """A copy of the latents; raises NumericsError where they are NaN or infinite."""
        latents = self.latents.clone()
        if not torch.isfinite(latents).all():
            broken = int((~torch.isfinite(latents)).flatten(1).any(1).sum())
            raise NumericsError(
                f"{broken} of {len(latents)} trajectories ended in NaN or infinity on {self._backend.name}; try fp32, "
                "a smaller guidance, or a schedule with more encoder runs."
            )
        return latents

    def snapshot(self) -> tuple[Tensor, Tensor]:
        """All that the coming steps of an unshared trajectory depend on, for `restore`."""
        return self.latents.clone(), self._velocities.clone()

    def restore(self, snapshot: tuple[Tensor, Tensor]) -> None:
        self.latents.copy_(snapshot[0])
        self._velocities.copy_(snapshot[1])


def begun(
    backend: Backend, program: Program, images: ImageRange, shape: tuple[int, int, int], batch_size: int
) -> list[Trajectory]:
    """Some images of a seed at the beginning of a program, latents of `shape` [C, H, W], `batch_size` at a time."""
    found = []
    for start in range(images.first, images.stop, batch_size):
        indices = range(start, min(images.stop, start + batch_size))
        noise = draw_noise(shape, seed=images.seed, indices=indices)
        labels = draw_labels(backend.config.num_classes, seed=images.seed, indices=indices)
        found.append(Trajectory(backend, program, noise, labels))
    return found


def run(
    backend: Backend,
    program: Program,
    noise: Tensor,
    labels: Tensor,
    *,
    step_noise: Callable[[int], Tensor] | None = None,
    watch: Callable[[int], None] | None = None,
) -> Tensor:
    """Drives a backend along a program from `noise` [B, C, H, W] for `labels` [B]; returns the latents at its end.

    `watch(k)` is called after evaluation k. Raises NumericsError where the latents end in NaN or infinity.
    """
    trajectory = Trajectory(backend, program, noise, labels, step_noise=step_noise)
    for k in range(len(program.evaluations)):
        trajectory.step(k)
        if watch is not None:
            watch(k)
    return trajectory.end()


def _plan(program: Program) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    """Which buffer holds the velocity of every evaluation, which its modulations or state, and which the decoder reads.

    A buffer is free again once nothing reads it any more. An evaluation that holds a refreshed state uses its slot.

    One that forecasts takes what is free: at most one slot more than refreshes need, since a forecast is read at once.
    The last two differ where a refreshed state is kept as it is and corrected for the decoder.
    """
    last_velocity_read = {k: k for k in range(len(program.evaluations))}
    last_state_read: dict[int, int] = {}
    for k, evaluation in enumerate(program.evaluations):
        last_velocity_read.update({j: k for j, _ in evaluation.update.velocities})
        last_state_read.update({r: k for branch in evaluation.branches for r, _ in branch.forecast})
    velocities: dict[int, int] = {}
    modulations: dict[int, int] = {}
    read: dict[int, int] = {}
    for k, evaluation in enumerate(program.evaluations):
        velocities[k] = _free({velocities[j] for j, last in last_velocity_read.items() if j < k <= last})
        if evaluation.held is not None:
            modulations[k] = modulations[evaluation.held]
        else:
            live = {modulations[r] for r, last in last_state_read.items() if r < k <= last}
            modulations[k] = _free(live)
        read[k] = _free(live | {modulations[k]}) if evaluation.corrected else modulations[k]
    return velocities, modulations, read


def state_slots(program: Program) -> int:
    """How many refreshes' modulations, or states, are kept at a time."""
    return _kept(program, _plan(program)[1])


def check_widths(backend: Backend, program: Program) -> None:
    """Raises MismatchError where a program runs a network at a width that it does not have."""
    asked = {one.width for one in program.evaluations}
    asked |= {branch.width for one in program.evaluations for branch in one.branches if branch.encode}
    if lacking := sorted(asked - set(backend.widths)):
        known = ", ".join(f"{width:g}" for width in backend.widths)
        raise MismatchError(
            f"The schedule runs a network at width {lacking[0]:g}, and {backend.name} has {known}; take a schedule "
            "without widths, export anew where the checkpoint has them (without --guide), or one that was trained at "
            "them (`ddt-accel train --from CHECKPOINT --dynamic nested`)."
        )


def _kept(program: Program, modulations: dict[int, int]) -> int:
    return 1 + max(modulations[k] for k, one in enumerate(program.evaluations) if one.encodes)


def _free(taken: set[int]) -> int:
    return next(slot for slot in range(len(taken) + 1) if slot not in taken)


def _checked(backend: Backend, noise: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    configs = [backend.config] + ([backend.guide.config] if backend.guide is not None else [])
    if noise.ndim != 4 or not noise.is_floating_point() or labels.shape != noise.shape[:1]:
        raise ConfigError(
            f"noise is {noise.dtype}{list(noise.shape)} and labels {list(labels.shape)}; expected floats [B, C, H, W] "
            "and [B]."
        )
    for config in configs:
        config.num_tokens((noise.shape[1], noise.shape[2], noise.shape[3]))
    config = next((config for config in configs if config.null_label is None), backend.config)
    last = config.num_classes - 1 if config.null_label is None else config.null_label
    if labels.is_floating_point() or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= last):
        also = "the network has no null label" if config.null_label is None else f"{last} is the null label"
        raise ConfigError(
            f"labels are {labels.dtype} from {labels.min().item()} to {labels.max().item()}; expected whole numbers "
            f"from 0 to {config.num_classes - 1} ({also})."
        )
    if len(labels) == 0:
        raise ConfigError("The batch is empty; give at least one noise and label.")
    return noise.float(), labels.long()
