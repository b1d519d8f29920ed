"""One network, or one and a second that guides it, run by PyTorch so that every encoder state is seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ddt_accel.backends.guided import GuidedBackend
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.backend import Backend

Networks = tuple[SplitNetwork] | tuple[SplitNetwork, SplitNetwork]


def watched(networks: Networks, on_state: Callable[[int, Tensor], None]) -> tuple[Backend, int, str]:
    """A backend that calls `on_state(network, state)`, states [rows, L, D]; of how many guidance branches those rows
    are; and how `compile_program` has both branches seen at every refresh, where there are two."""
    backends = [TorchBackend(network, on_state=partial(on_state, side)) for side, network in enumerate(networks)]
    if len(backends) == 2:
        return GuidedBackend(*backends), 1, "always"
    return (backends[0], 1, "read") if networks[0].config.null_label is None else (backends[0], 2, "always")


def unwatched(networks: Networks) -> Backend:
    """The same where nobody looks."""
    backends = [TorchBackend(network) for network in networks]
    return GuidedBackend(*backends) if len(backends) == 2 else backends[0]


def networks_of(backend: Backend) -> Networks | None:
    """Those that PyTorch runs, for who wants to look at their states; None of any other backend."""
    if isinstance(backend, GuidedBackend):
        main, guide = networks_of(backend.main), networks_of(backend.guide)
        return (main[0], guide[0]) if main is not None and guide is not None else None
    return (backend.model,) if isinstance(backend, TorchBackend) else None
