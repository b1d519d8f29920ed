"""CUDA graphs that cannot be captured: what is undone, what is said, and that the pictures are drawn all the same."""

from __future__ import annotations

import contextlib
import gc
from types import SimpleNamespace

import pytest
import torch

from ddt_accel import SamplingSpec, Schedule, draw_labels, draw_noise, load_model, sample
from ddt_accel.backends.pytorch import TorchBackend, TorchSession
from ddt_accel.sampling import capture as capturing
from ddt_accel.sampling.capture import capture, cause_of
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import Trajectory

SHAPE = (3, 8, 8)
SCHEDULE = Schedule.uniform(SamplingSpec(num_steps=4), 2)


@pytest.fixture
def device(monkeypatch) -> SimpleNamespace:
    """What CUDA does during a capture, as far as it is asked here: it forbids to wait, and then cannot be ended."""
    state = SimpleNamespace(capturing=False, broken=False, done=[])

    class Graph:
        def capture_begin(self, pool, capture_error_mode: str) -> None:
            state.done.append(("begin", pool, capture_error_mode, gc.isenabled()))
            state.capturing = True

        def capture_end(self) -> None:
            state.capturing = False
            state.done.append("end")
            if state.broken:
                raise RuntimeError("operation failed due to a previous error during capture")

    class Generator:
        def clone_state(self) -> str:
            return "clone"

        def graphsafe_set_state(self, cloned: str) -> None:
            state.done.append(("generator", cloned))

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda index: f"stream {index}")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "default_generators", (Generator(),))
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *given: contextlib.nullcontext())
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda index, pool, name=name: state.done.append((name, pool)))
    monkeypatch.setattr(capturing, "_POOLS", {})
    monkeypatch.setattr(capturing, "_BROKEN", [])
    capturing._stream.cache_clear()
    yield state
    capturing._stream.cache_clear()


class Waiting(TorchBackend):
    """A backend that waits for the device in every decoder run."""

    def __init__(self, model, state: SimpleNamespace) -> None:
        super().__init__(model)
        self.state = state

    def open(self, batch: int, latent_shape: tuple[int, int, int], slots: int, **given) -> TorchSession:
        session = super().open(batch, latent_shape, slots, **given)
        decode = session.decode

        def waiting(slot: int, rows: slice, width: float) -> None:
            if self.state.capturing:
                self.state.broken = True
                raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")
            decode(slot, rows, width)

        session.decode = waiting
        return session


def test_a_capture_that_fails_is_undone_told_and_done_without(device, tiny_model_path) -> None:
    model = load_model(tiny_model_path)
    noise, labels = draw_noise(SHAPE, seed=1, indices=range(2)), draw_labels(4, seed=1, indices=range(2))
    trajectory = Trajectory(Waiting(model, device), compile_program(SCHEDULE), noise, labels)
    trajectory._capturable = True  # as on a GPU
    trajectory.run()
    expected = trajectory.end()
    trajectory.start(noise, labels)
    with pytest.warns(
        UserWarning, match="torch runs without a CUDA graph: operation not permitted when stream is capt"
    ):
        trajectory.run()
    assert torch.equal(trajectory.end(), expected)
    ((_, pool, mode, collecting), *after) = device.done
    assert (mode, collecting) == ("thread_local", False)
    assert after == [
        "end", ("_cuda_endAllocateToPool", pool), ("_cuda_releasePool", pool), ("generator", "clone")
    ]  # fmt: skip
    assert gc.isenabled()
    trajectory.start(noise, labels)
    trajectory.run()  # and does not try again
    assert torch.equal(trajectory.end(), expected)
    assert len(device.done) == 5


def test_graphs_share_a_stream_and_a_pool(device) -> None:
    graphs = [capture(lambda: None, torch.device("cuda")) for _ in range(2)]
    assert graphs[0] is not graphs[1]
    begun = [done for done in device.done if done[0] == "begin"]
    assert begun[0][1] is begun[1][1]
    assert device.done.count("end") == 2
    assert len(device.done) == 4  # nothing is undone


def test_with_the_last_graph_the_pool_goes(device) -> None:
    """PyTorch refuses one that no graph holds any more (as it did on an H200)."""
    first = capture(lambda: None, torch.device("cuda"))
    second = capture(lambda: None, torch.device("cuda"))
    del first
    third = capture(lambda: None, torch.device("cuda"))
    del second, third
    capture(lambda: None, torch.device("cuda"))
    pools = [done[1] for done in device.done if done[0] == "begin"]
    assert pools[0] is pools[1] is pools[2]
    assert pools[3] is not pools[0]


def test_after_a_failure_there_is_another_pool(device) -> None:
    """PyTorch up to 2.11 never ends what it records of pinned memory: it refuses the pool, and still asks the graph."""

    def failing() -> None:
        device.broken = True
        raise RuntimeError("operation not permitted when stream is capturing")

    kept = capture(lambda: None, torch.device("cuda"))
    with pytest.raises(RuntimeError):
        capture(failing, torch.device("cuda"))
    device.broken = False
    later = capture(lambda: None, torch.device("cuda"))
    assert kept is not later
    first, broken, second = (done[1] for done in device.done if done[0] == "begin")
    assert first is broken
    assert second is not first
    assert len(capturing._BROKEN) == 1


def test_an_interruption_is_no_failure_of_the_allocator(device) -> None:
    """PyTorch ends a capture that was not broken by itself; then nothing may be released twice."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(interrupted, torch.device("cuda"))
    assert gc.isenabled()


def test_the_first_cause_is_told() -> None:
    def failing() -> None:
        try:
            raise ValueError("first\nand more")
        finally:
            raise RuntimeError("second")

    with pytest.raises(RuntimeError) as failed:
        failing()
    assert cause_of(failed.value) == "first"
    assert cause_of(MemoryError()) == "MemoryError"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_graphs_come_and_go() -> None:
    device = torch.device("cuda")
    out = torch.zeros(8, device=device)
    for turn in range(1, 4):
        graph = capture(lambda: torch.add(out, 1, out=out), device)
        graph.replay()
        assert out.tolist() == [float(turn)] * 8
        del graph


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_after_a_failed_capture_memory_and_captures_are_as_before() -> None:
    """A backend that waits; then allocations that need what is cached, and another capture."""
    device, before = torch.device("cuda"), torch.randn(8, device="cuda")
    other = torch.zeros(8, device=device)
    living = capture(lambda: torch.add(other, 1, out=other), device)  # keeps the pool that they shared

    def waits() -> None:
        before.mul_(2)
        torch.cuda.synchronize()

    with pytest.raises(RuntimeError):
        capture(waits, device)
    # Of a small share of the card, since others may be using it.
    share = int(0.05 * torch.cuda.get_device_properties(device).total_memory)
    torch.cuda.set_per_process_memory_fraction(0.05)
    try:
        first = torch.empty(int(0.6 * share), dtype=torch.uint8, device=device)
        del first
        second = torch.empty(
            int(0.6 * share) + (1 << 21), dtype=torch.uint8, device=device
        )  # if the first is given back
        del second
        torch.cuda.empty_cache()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.randn(8, device=device)  # the generator is not captured, either
    out = torch.zeros(8, device=device)
    graph = capture(lambda: torch.add(out, 1, out=out), device)
    graph.replay()
    living.replay()
    assert out.tolist() == other.tolist() == [1.0] * 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_backend_that_waits_draws_the_same_pictures() -> None:
    model = load_model("cifar10").cuda()

    class Waits(TorchBackend):
        def open(self, batch: int, latent_shape: tuple[int, int, int], slots: int, **given) -> TorchSession:
            session = super().open(batch, latent_shape, slots, **given)
            decode = session.decode

            def waiting(slot: int, rows: slice, width: float) -> None:
                decode(slot, rows, width)
                torch.cuda.synchronize()

            session.decode = waiting
            return session

    noise, labels = draw_noise((3, 32, 32), seed=1, indices=range(2)), torch.tensor([0, 3])
    trajectory = Trajectory(Waits(model), compile_program(SCHEDULE), noise, labels)
    trajectory.run()
    trajectory.start(noise, labels)
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        trajectory.run()
    torch.testing.assert_close(trajectory.end().cpu(), sample(model, SCHEDULE, noise, labels).cpu())
