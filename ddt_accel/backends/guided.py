"""Guidance by a second network (autoguidance, arXiv 2406.02507): two backends as one, each for one branch's rows.

Where guidance applies, v = v_g + w (v − v_g): both networks see the same latents, time and label. The second one's rows
are those of the unconditional branch otherwise, so that the loop knows no difference; states, modulations and slots are
each network's own, and whatever is asked of one half of the rows runs one network.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.backend import Backend, Buffers, Session
from ddt_accel.spec import SamplingSpec


class GuidedBackend:
    """`main`, guided by `guide`: any two backends on the same device.

    Both run complete, whatever widths they have. Raises MismatchError where the two are for other latents or classes,
    ConfigError where one has a guide already.
    """

    widths = (1.0,)

    def __init__(self, main: Backend, guide: Backend) -> None:
        if main.guide is not None or guide.guide is not None:
            raise ConfigError("These networks have a second one that guides already; give each of them alone.")
        check_guide(main, guide)
        self.main, self.guide = main, guide
        self.name = main.name if main.name == guide.name else f"{main.name}, guided by {guide.name}"
        self.config, self.device, self.checkpoint_sha256 = main.config, main.device, main.checkpoint_sha256
        self.capturable = main.capturable and guide.capturable
        self.latent_shape = known_shape(main) or known_shape(guide)

    @property
    def compile_seconds(self) -> float:
        """Spent in calls that compiled something, so far."""
        return sum(getattr(backend, "compile_seconds", 0.0) for backend in (self.main, self.guide))

    def open(
        self, batch: int, latent_shape: tuple[int, int, int], slots: int, *, buffers: Buffers | None = None
    ) -> GuidedSession:
        if buffers is not None:
            raise ConfigError("Two networks take the rows of both branches; open one of them for one.")
        whole = Buffers.zeros(2 * batch, latent_shape, self.device)
        halves = whole[:batch], whole[batch:]
        sessions = [
            backend.open(batch, latent_shape, slots, buffers=half)
            for backend, half in zip((self.main, self.guide), halves, strict=True)
        ]
        return GuidedSession(sessions, whole, batch)


class GuidedSession:
    """See `sampling.backend.Session`.

    A state that one network holds while the other has a new one is read where it lies, and not copied.
    """

    def __init__(self, sessions: Sequence[Session], buffers: Buffers, batch: int) -> None:
        self._sessions, self._batch = sessions, batch
        self.latents, self.times, self.labels = buffers.latents, buffers.times, buffers.labels
        self.velocity = buffers.velocity
        self._held: list[dict[int, int]] = [{} for _ in sessions]  # slot → that of the state which stands for it

    def encode(self, slot: int, rows: slice, width: float = 1.0) -> None:
        for half in self._halves(rows):
            self._held[half].pop(slot, None)
            self._sessions[half].encode(slot, slice(0, self._batch), width)

    def forecast(self, slot: int, sources: Sequence[tuple[int, float]], constant: Tensor | None, rows: slice) -> None:
        (first, weight), *others = sources
        for half in self._halves(rows):
            if constant is None and weight == 1.0 and not others:
                self._held[half][slot] = first
            else:
                self._held[half].pop(slot, None)
                self._sessions[half].forecast(slot, sources, constant, slice(0, self._batch))

    def decode(self, slot: int, rows: slice, width: float = 1.0) -> None:
        for half in self._halves(rows):
            self._sessions[half].decode(self._held[half].get(slot, slot), slice(0, self._batch), width)

    def _halves(self, rows: slice) -> list[int]:
        return [half for half in (0, 1) if rows.start <= half * self._batch < rows.stop]


def backend_of(
    model_or_backend: SplitNetwork | Backend,
    guide: SplitNetwork | Backend | None,
    spec: SamplingSpec | None = None,
) -> Backend:
    """A network and its guide as one backend: models are run by PyTorch.

    `spec` is the sampling that was asked for: ConfigError says where the guide would guide nothing of it. On coarser
    grids that stand in for it there may be nothing to guide.
    """
    main = TorchBackend(model_or_backend) if isinstance(model_or_backend, SplitNetwork) else model_or_backend
    if guide is None:
        return main
    if spec is not None:
        check_guides(spec)
    return GuidedBackend(main, TorchBackend(guide) if isinstance(guide, SplitNetwork) else guide)


def caching_states(backend: Backend) -> Backend:
    """The same networks with states in the place of modulations, where PyTorch runs them as they are."""
    if isinstance(backend, GuidedBackend):
        return GuidedBackend(caching_states(backend.main), caching_states(backend.guide))
    return TorchBackend(backend.model, cache="state") if isinstance(backend, TorchBackend) else backend


def check_guides(spec: SamplingSpec) -> None:
    """Raises ConfigError where a second network would guide nothing."""
    if not (spec.guidance_weights != 1.0).any():
        raise ConfigError(
            f"A second network (--guide) would guide nothing: guidance is {spec.guided}; give another --guidance, or "
            "leave the guide out."
        )


def check_guide(main: Backend, guide: Backend) -> None:
    """Raises MismatchError for a guide that is no second network for what `main` draws."""
    mine, other = main.config, guide.config
    shapes = known_shape(main), known_shape(guide)
    if mine.in_channels != other.in_channels or (None not in shapes and shapes[0] != shapes[1]):
        said = [
            f"{config.in_channels} channels" if shape is None else f"latents {list(shape)}"
            for config, shape in zip((mine, other), shapes, strict=True)
        ]
        raise MismatchError(f"The guide (--guide) is for {said[1]}, the network for {said[0]}; give one for the same.")
    if mine.num_classes != other.num_classes:
        raise MismatchError(
            f"The guide (--guide) has {other.num_classes} classes, the network {mine.num_classes}; give one of the "
            "same classes."
        )
    if main.device != guide.device:
        raise ConfigError(f"The network is on {main.device}, its guide on {guide.device}; move them to one device.")


def known_shape(backend: Backend) -> tuple[int, int, int] | None:
    """The latents [C, H, W] that a backend is for, where it is for some alone."""
    shape: tuple[int, int, int] | None = getattr(backend, "latent_shape", None)
    return shape
