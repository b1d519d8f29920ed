"""Engines without a GPU: the backend on a library that runs PyTorch's networks at the addresses it is given.

It is as strict as the real one says it is: profile, shapes, memory and addresses, in this order.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ddt_accel import SamplingSpec, Schedule, draw_labels, draw_noise, export, load_model, sample
from ddt_accel.backends import tensorrt
from ddt_accel.backends.contexts import ALIGNMENT, Contexts, WorkingMemory
from ddt_accel.backends.kernel_cache import KernelCache
from ddt_accel.backends.manifest import Manifest
from ddt_accel.backends.networks import DecoderNetwork, EncoderNetwork
from ddt_accel.backends.tensors import tensor_table
from ddt_accel.errors import ArtifactError, ConfigError
from ddt_accel.exporting.engines import EngineOptions
from ddt_accel.networks.families import prepare
from ddt_accel.networks.prepared import Arithmetic

builds = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed"
)
SHAPE = (3, 8, 8)
BYTES = 1000  # of working memory that a row takes
MODE = SimpleNamespace(INPUT="in", OUTPUT="out")
STREAM = SimpleNamespace(cuda_stream=0, synchronize=lambda: None, wait_stream=lambda other: None)


class Config:
    """Of a context; it says what it is given."""

    def __init__(self, library: SimpleNamespace) -> None:
        self.library, self.strategy, self.cache = library, None, None
        self.dynamic_shapes_kernel_specialization_strategy = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.cache = cache
        return True


class Cache:
    """Of kernels: it takes back what it gave."""

    def __init__(self) -> None:
        self.kernels: set[str] = set()

    def serialize(self) -> bytes:
        return b"kernels:" + ",".join(sorted(self.kernels)).encode()

    def deserialize(self, content: bytes) -> bool:
        if not content.startswith(b"kernels:"):
            return False
        self.kernels |= set(content.removeprefix(b"kernels:").decode().split(",")) - {""}
        return True


class Context:
    def __init__(self, engine: Engine, config: Config) -> None:
        assert (config.strategy, config.dynamic_shapes_kernel_specialization_strategy) == ("user managed", "eager")
        self.engine, self.config, self.profile, self.sized = engine, config, None, False
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return profile in range(len(self.engine.profiles))

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        assert not self.sized, "a graph may hold its calls"
        least, most = self.engine.profiles[self.profile]
        self.shapes[name] = shape
        return least <= shape[0] <= most

    def update_device_memory_size_for_shapes(self) -> int:
        assert set(self.shapes) == set(self.engine.inputs)
        self.sized = True
        return self.needed

    @property
    def needed(self) -> int:
        return BYTES * self.shapes["latents"][0]

    def set_device_memory(self, address: int, size: int) -> None:
        assert self.sized
        assert address % ALIGNMENT == 0
        assert size >= self.needed
        self.memory = address, size

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % ALIGNMENT == 0

    def execute_async_v3(self, stream: int) -> bool:
        assert stream != 0
        rows, table = self.shapes["latents"][0], {one.name: one for one in self.engine.table}
        tensors = {name: at(self.addresses[name], one.at(rows), one.dtype) for name, one in table.items()}
        assert self.memory is not None
        at(self.memory[0], (self.needed,), "uint8").fill_(255)  # a context that another's memory overlaps would notice
        *inputs, output = tensors.values()
        with torch.inference_mode():
            output.copy_(self.engine.network(*inputs))
        self.config.cache.kernels.add(f"{self.engine.name} {rows}")
        return True


class Engine:
    def __init__(self, name: str, network, table, profiles: list[tuple[int, int]], library: SimpleNamespace) -> None:
        self.name, self.network, self.table, self.profiles, self.library = name, network, table, profiles, library
        self.inputs = [one.name for one in table[:-1]]

    def get_tensor_mode(self, name: str) -> str:
        return MODE.INPUT if name in self.inputs else MODE.OUTPUT

    def create_runtime_config(self) -> Config:
        return Config(self.library)

    def create_execution_context(self, config: Config) -> Context:
        self.library.contexts.append(Context(self, config))
        return self.library.contexts[-1]


def at(address: int, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """The tensor that lies there."""
    kind = getattr(torch, dtype)
    count = int(np.prod(shape)) * torch.empty((), dtype=kind).element_size()
    return torch.frombuffer((ctypes.c_byte * count).from_address(address), dtype=kind).view(shape)


def aligned_like(tensor: torch.Tensor) -> torch.Tensor:
    """Where a GPU's memory would begin."""
    buffer = torch.empty(tensor.nbytes + ALIGNMENT, dtype=torch.uint8)
    start = -buffer.data_ptr() % ALIGNMENT
    return buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


@pytest.fixture(scope="module")
def engines(once, tiny_model_path) -> Path:
    def make(folder: Path) -> None:
        options = EngineOptions(engine="tensorrt-rtx", batches=((1, 1, 2), (3, 4, 4)))
        export(load_model(tiny_model_path), folder, format="tensorrt", precision="fp32", engines=options)

    return once("engines-of-contexts", make)


@pytest.fixture
def library(monkeypatch, engines, tiny_model_path, tmp_path) -> SimpleNamespace:
    """TensorRT for RTX and a GPU for it, both in pretence; `folder` is a copy of the export."""
    manifest = Manifest.load(engines)
    prepared = prepare(load_model(tiny_model_path), SHAPE, Arithmetic.of("fp32"))
    table = tensor_table(manifest.config, SHAPE, manifest.cut)
    networks = {"encoder": EncoderNetwork(prepared, manifest.cut), "decoder": DecoderNetwork(prepared, manifest.cut)}
    folder = tmp_path / "engines"
    folder.mkdir()
    for path in engines.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    state = SimpleNamespace(contexts=[], capturing=False, folder=folder)
    profiles = [(least, 2 * most) for least, _, most in manifest.engine.batches]

    def engine(content: bytes) -> Engine:
        name = next(name for name in networks if (folder / f"{name}.engine").read_bytes() == content)
        return Engine(name, networks[name], table[name], profiles, state)

    module = SimpleNamespace(
        __version__=manifest.engine.version,
        Logger=type("Logger", (), {"ERROR": 0, "__init__": lambda self, level: None}),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=engine),
        TensorIOMode=MODE,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
    )
    cuda = SimpleNamespace(
        current_device=lambda: 0,
        get_device_name=lambda device: "a card",
        Stream=lambda device: SimpleNamespace(**{**vars(STREAM), "cuda_stream": 7}),
        current_stream=lambda device: STREAM,
        is_current_stream_capturing=lambda: state.capturing,
    )
    fake = type("Torch", (), {"__getattr__": lambda self, name: getattr(torch, name)})()
    fake.cuda, fake.device, fake.empty_like = cuda, lambda *given: torch.device("cpu"), aligned_like
    monkeypatch.setattr(tensorrt, "torch", fake)
    monkeypatch.setattr(tensorrt, "gpu", lambda: "sm_89")
    monkeypatch.setitem(sys.modules, "pretended", module)
    monkeypatch.setitem(tensorrt.ENGINE_LIBRARIES, "tensorrt-rtx", "pretended")
    return state


@builds
def test_engines_draw_what_pytorch_draws(library, tiny_model_path) -> None:
    """Of all batches that they are for, with both branches' own refreshes; and whatever lies in the shared memory."""
    spec = SamplingSpec(num_steps=6, guidance=1.5)
    schedule = Schedule(
        spec=spec, refresh_steps=(0, 2, 4), forecasts={3: ((0, -0.4), (2, 1.4))}, unconditional_steps=(2, 4),
        unconditional_forecasts={3: ((2, 1.0),)},
    )  # fmt: skip
    backend = tensorrt.TensorRTBackend(library.folder)
    assert 0 < Manifest.load(library.folder).engine.verified < 1e-4
    for batch in (1, 3, 2):
        noise, labels = draw_noise(SHAPE, seed=4, indices=range(batch)), draw_labels(4, seed=4, indices=range(batch))
        expected = sample(load_model(tiny_model_path), schedule, noise, labels)
        torch.testing.assert_close(sample(backend, schedule, noise, labels), expected, atol=1e-4, rtol=1e-3)
    # One for each network and number of rows, all in one memory, which is as large as the largest needs.
    made = sorted((one.engine.name, one.shapes["latents"][0], one.profile) for one in library.contexts)
    rows = {1: 0, 2: 0, 3: 0, 4: 0, 6: 1}
    assert made == sorted((name, count, profile) for name in ("encoder", "decoder") for count, profile in rows.items())
    assert len({one.memory for one in library.contexts}) == 1
    assert library.contexts[0].memory[1] == 6 * BYTES
    with pytest.raises(ConfigError, match="9 rows at once"):
        backend.open(9, SHAPE, 1)


@builds
def test_memory_of_graphs_stays_where_it_is(library) -> None:
    backend, schedule = tensorrt.TensorRTBackend(library.folder), Schedule.uniform(SamplingSpec(num_steps=2), 1)

    def draw(batch: int) -> None:
        sample(backend, schedule, torch.zeros(batch, *SHAPE), torch.zeros(batch).long())

    memory = backend._contexts.memory
    draw(1)
    library.capturing = True
    draw(1)
    library.capturing, taken = False, memory._buffer
    draw(2)
    assert [one is taken for one in memory._held] == [True]
    draw(3)
    assert len(memory._held) == 1


@builds
def test_kernels_are_compiled_once_a_machine(library) -> None:
    def kernels() -> set[str]:
        backend = tensorrt.TensorRTBackend(library.folder)
        sample(backend, Schedule.uniform(SamplingSpec(num_steps=2), 1), torch.zeros(2, *SHAPE), torch.zeros(2).long())
        return set(library.contexts[-1].config.cache.kernels)

    first = kernels()
    (path,) = library.folder.glob("kernels-*")
    assert path.name == "kernels-sm_89.safetensors"
    assert {"encoder 1", "decoder 1", "decoder 2", "decoder 4"} <= first  # of the verification, and of the trajectory
    before = path.stat().st_mtime_ns
    library.contexts.clear()
    assert kernels() == first
    assert path.stat().st_mtime_ns == before  # nothing was added
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"Kernels are compiled anew: .*kernels-sm_89"):
        assert kernels() == first - {"encoder 1", "decoder 1"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernels()  # and was replaced


def test_the_cache_of_another_card_or_version_is_passed_over(tmp_path, cli) -> None:
    path, config = tmp_path / "kernels.safetensors", Config(SimpleNamespace())
    first = KernelCache(path, library="tensorrt-rtx 1.7", gpu="a card")
    first.attach(config)
    config.cache.kernels.add("one")
    first.save()
    again = KernelCache(path, library="tensorrt-rtx 1.7", gpu="a card")
    again.attach(config)
    assert config.cache.kernels == {"one"}
    for told, said in (
        ({"library": "tensorrt-rtx 1.8", "gpu": "a card"}, "is of tensorrt-rtx 1.7 on a card, and this is .* 1.8 on a"),
        ({"library": "tensorrt-rtx 1.7", "gpu": "another"}, "on a card, and this is tensorrt-rtx 1.7 on another"),
    ):
        other = KernelCache(path, **told)
        with pytest.warns(UserWarning, match=said):
            other.attach(config)
        assert not config.cache.kernels
        other.attach(config)  # of the second engine: it is asked for once
    explained = cli("inspect", path)
    assert explained.code == 0, explained.err
    assert "a card" in explained.out


@pytest.mark.parametrize("broken", ["refuses", "raises"])
def test_a_cache_that_the_library_refuses_is_passed_over(tmp_path, monkeypatch, broken: str) -> None:
    path, config = tmp_path / "kernels.safetensors", Config(SimpleNamespace())
    kept = KernelCache(path, library="a", gpu="b")
    kept.attach(config)
    kept.save()

    def deserialize(self, content: bytes) -> bool:
        if broken == "raises":
            raise RuntimeError("no")
        return False

    monkeypatch.setattr(Cache, "deserialize", deserialize)
    again = KernelCache(path, library="a", gpu="b")
    with pytest.warns(UserWarning, match="compiled anew"):
        again.attach(config)
    assert config.cache is not None


def test_where_nothing_can_be_kept_nothing_is_said(tmp_path) -> None:
    blocking, config = tmp_path / "file", Config(SimpleNamespace())
    blocking.write_text("")
    cache = KernelCache(blocking / "kernels.safetensors", library="a", gpu="b")
    cache.attach(config)
    config.cache.kernels.add("one")
    cache.save()
    assert blocking.read_text() == ""
    without = KernelCache(tmp_path / "kernels.safetensors", library="tensorrt 10", gpu="b")
    without.attach(SimpleNamespace())  # a library that keeps no kernels
    without.save()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class Taking:
    """A context that works where it is told to."""

    def __init__(self) -> None:
        self.given: list[tuple[int, int]] = []

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % ALIGNMENT == 0
        self.given.append((address, size))


def test_what_a_graph_has_taken_in_stays() -> None:
    memory, contexts = WorkingMemory(torch.device("cpu")), [Taking() for _ in range(4)]
    memory.give(contexts[0], 1000)
    memory.give(contexts[1], 400)
    assert contexts[1].given == contexts[0].given
    assert contexts[0].given[0][1] >= 1000
    memory.give(contexts[2], 5000)  # nobody holds the smaller one
    assert contexts[0].given[1:] == contexts[1].given[1:] == contexts[2].given
    assert not memory._held
    memory.pin()
    pinned = memory._buffer
    memory.give(contexts[3], 9000)
    assert memory._held[0] is pinned
    assert contexts[0].given[-1] == contexts[3].given[0] != contexts[2].given[0]
    assert len(memory._held) == 1
    memory.give(Taking(), 20000)  # of which no graph knows
    assert len(memory._held) == 1


def test_a_context_that_needs_nothing_is_given_nothing() -> None:
    memory, context = WorkingMemory(torch.device("cpu")), Taking()
    memory.give(context, 0)
    assert context.given == []


def test_a_size_that_the_library_does_not_know_is_that_of_the_profile(monkeypatch) -> None:
    """And an engine that lacks a profile or a shape says so."""
    state = SimpleNamespace(contexts=[])
    module = SimpleNamespace(
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
    )
    table = [SimpleNamespace(name="latents"), SimpleNamespace(name="velocity")]
    engine = Engine("decoder", None, table, [(1, 4)], state)
    engine.get_device_memory_size_for_profile_v2 = lambda profile: 7777
    monkeypatch.setattr(Context, "update_device_memory_size_for_shapes", lambda self: setattr(self, "sized", True) or 0)
    contexts = Contexts(module, torch.device("cpu"), KernelCache(Path("none"), library="a", gpu="b"))
    contexts.of("decoder", engine, 0, {"latents": (2, *SHAPE)}, STREAM)
    assert contexts.memory.size == 7777
    with pytest.raises(ArtifactError, match="has no profile 1"):
        contexts.of("decoder", engine, 1, {"latents": (3, *SHAPE)}, STREAM)
    with pytest.raises(ArtifactError, match=r"takes no latents of shape \[5, 3, 8, 8\]"):
        contexts.of("decoder", engine, 0, {"latents": (5, *SHAPE)}, STREAM)
    engine.create_execution_context = lambda config: None
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        contexts.of("decoder", engine, 0, {"latents": (1, *SHAPE)}, STREAM)
