"""TensorRT engines from ONNX files, by `tensorrt` or by TensorRT for RTX, which have one interface.

TensorRT times kernels on the GPU that an engine is for; TensorRT for RTX compiles for all RTX cards since Ampere, on
any machine, and picks kernels where the engine is first run. For the cards of data centres there is only the former.
Networks are strongly typed: every layer computes in the type that the ONNX file says.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ddt_accel.artifacts import write_atomic
from ddt_accel.backends.manifest import ENGINE_LIBRARIES
from ddt_accel.backends.tensorrt import RTX_TARGETS, gpu
from ddt_accel.backends.tensors import TensorSpec
from ddt_accel.errors import ArtifactError, ConfigError, DependencyError
from ddt_accel.stages import OnStage

GIB = 1 << 30
MAX_BATCH, MAX_WORKSPACE_GIB = 4096, 4096


def _written(batches: tuple[tuple[int, int, int], ...]) -> str:
    return ",".join(":".join(map(str, profile)) for profile in batches) or "none"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How engines are built.

    `batches` are profiles: images at least, usually and at most; guidance doubles them inside. `workspace_gib` limits
    what the builder may use for a layer; `timing_cache` is a file in which it keeps what it has timed.
    """

    engine: str = "auto"
    batches: tuple[tuple[int, int, int], ...] = ((1, 8, 32),)
    optimization_level: int | None = None
    workspace_gib: float | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.engine not in ("auto", *ENGINE_LIBRARIES):
            raise ConfigError(f"engine is {self.engine!r}; choose one of auto, {', '.join(ENGINE_LIBRARIES)}.")
        if not self.batches or not all(len(b) == 3 and 1 <= b[0] <= b[1] <= b[2] <= MAX_BATCH for b in self.batches):
            raise ConfigError(
                f"The batches (--batch) are {_written(self.batches)}; give min:opt:max with 1 ≤ min ≤ opt ≤ max ≤ "
                f"{MAX_BATCH}, such as 1:8:32."
            )
        covered = sorted(self.batches)
        if any(after[0] > 2 * before[2] + 1 for before, after in pairwise(covered)):
            raise ConfigError(
                f"The batches (--batch) are {_written(self.batches)}, which leave out what lies between them; give "
                "profiles that meet, such as 1:1:4,4:16:32: guidance doubles them inside."
            )
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ConfigError(
                f"The optimization level (--optimization-level) is {self.optimization_level}; give 0 to 5."
            )
        if self.workspace_gib is not None and not 0 < self.workspace_gib <= MAX_WORKSPACE_GIB:
            raise ConfigError(
                f"The workspace limit (--workspace-gib) is {self.workspace_gib} GiB; give a number above 0, at most "
                f"{MAX_WORKSPACE_GIB}."
            )

    @classmethod
    def parse_batches(cls, text: str) -> tuple[tuple[int, int, int], ...]:
        """Profiles as they are written: "1:8:32", "8", or several by commas."""
        try:
            profiles = [tuple(map(int, part.split(":"))) for part in text.split(",")]
        except ValueError:
            raise ConfigError(f"The batch is {text!r}; give min:opt:max, such as 1:8:32, or one number.") from None
        full = [profile * 3 if len(profile) == 1 else profile for profile in profiles]
        return cls(batches=tuple(full)).batches  # type: ignore[arg-type]  # whose lengths are checked there


@dataclass(frozen=True, kw_only=True)
class Library:
    """TensorRT as it is installed here."""

    name: str
    version: str
    module: Any

    @property
    def for_any_gpu(self) -> bool:
        return self.name == "tensorrt-rtx"


def find_library(engine: str) -> Library:
    """The library that is asked for; for "auto" the first that is installed and builds for the GPU at hand, or, without
    one, TensorRT for RTX."""
    wanted = list(ENGINE_LIBRARIES) if engine == "auto" else [engine]
    unfit, architecture = "", gpu()
    for name in wanted:
        try:
            module = importlib.import_module(ENGINE_LIBRARIES[name])
        except ImportError:
            continue
        library = Library(name=name, version=str(module.__version__), module=module)
        if not library.for_any_gpu and architecture is None:
            unfit = "tensorrt is installed, but builds engines on the GPU that they are for, and there is none here: "
        elif library.for_any_gpu and engine == "auto" and architecture not in (None, *RTX_TARGETS):
            unfit = f"TensorRT for RTX is installed, but not for this GPU, {architecture}, which needs tensorrt: "
        else:
            return library
    raise DependencyError(
        (unfit or f"No TensorRT is installed for --engine {engine}: ")
        + "`pip install 'ddt-accel[trt]'` brings tensorrt, 'ddt-accel[trt-rtx]' TensorRT for RTX, which builds engines "
        f"for {', '.join(RTX_TARGETS)}, without a GPU."
    )


def build_engine(
    library: Library,
    onnx_path: Path,
    engine_path: Path,
    tensors: Sequence[TensorSpec],
    options: EngineOptions,
    on_stage: OnStage,
) -> dict[str, int]:
    """Builds one engine; returns how many matrix products the network has in each type.

    Raises ArtifactError with the builder's own words where it refuses, ConfigError where the parsed network's tensors
    are not `tensors`.
    """
    trt = library.module
    messages: list[str] = []
    logger = _logger(trt, messages)
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # from TensorRT 11 on all are
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        found = "; ".join(str(parser.get_error(k).desc()) for k in range(parser.num_errors))
        raise ArtifactError(f"{library.name} {library.version} cannot read {onnx_path.name}: {found[:500]}")
    _check_tensors(trt, network, tensors)
    _check_attention(trt, network)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: float32 with the mantissa of a float16
    # Without it engines may allocate memory while they run, which no CUDA graph can hold; TensorRT for RTX has it.
    if (own_memory := getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)) is not None:
        config.set_flag(own_memory)
    # Else a context takes as much working memory as the largest batch of its profile, whatever it is run with.
    if (resizing := getattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10", None)) is not None:
        config.set_preview_feature(resizing, True)
    for least, usual, most in options.batches:
        profile = builder.create_optimization_profile()
        for tensor in tensors[:-1]:
            profile.set_shape(tensor.name, tensor.at(least), tensor.at(2 * usual), tensor.at(2 * most))
        config.add_optimization_profile(profile)
    if options.workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * GIB))
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible and not library.for_any_gpu:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    config.progress_monitor = _monitor(trt, engine_path.stem, on_stage)
    # TensorRT for RTX times nothing before the first run.
    cache = None if library.for_any_gpu else _timing_cache(config, options.timing_cache)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise ArtifactError(
            f"{library.name} {library.version} could not build {engine_path.name}: {'; '.join(messages)[-500:]}"
        )
    with engine_path.open("wb") as file:
        file.write(built)
    if cache is not None and options.timing_cache is not None:
        write_atomic(options.timing_cache, bytes(cache.serialize()))
    return _product_types(trt, network)


def _check_tensors(trt: Any, network: Any, tensors: Sequence[TensorSpec]) -> None:
    """That the parsed network has the inputs and the output of the table, in order, in their types and shapes."""
    names = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64"}
    parsed = [network.get_input(k) for k in range(network.num_inputs)]
    parsed += [network.get_output(k) for k in range(network.num_outputs)]
    if len(parsed) != len(tensors):
        raise ConfigError(f"The parsed network has {len(parsed)} tensors, and {len(tensors)} were exported; report it.")
    for one, wanted in zip(parsed, tensors, strict=True):
        shape = tuple(-1 if isinstance(size, str) else size for size in wanted.shape)
        dtype = getattr(trt.DataType, names[wanted.dtype])
        if (one.name, one.dtype, tuple(one.shape)) != (wanted.name, dtype, shape):
            raise ConfigError(
                f"The parsed network has {one.name} {one.dtype} {tuple(one.shape)} where {wanted.name} {dtype} {shape} "
                "was exported; please report it."
            )


def _check_attention(trt: Any, network: Any) -> None:
    """That every softmax reads a matrix product as it is, as TensorRT wants it to fuse attention into one kernel.

    Otherwise scores would be written and read: 4.3 GB a block of DDT-XL/2 at batch 32, 512 px.
    """
    layers = [network.get_layer(k) for k in range(network.num_layers)]
    made_by = {layer.get_output(k).name: layer for layer in layers for k in range(layer.num_outputs)}
    for layer in layers:
        if layer.type == trt.LayerType.SOFTMAX:
            source = made_by[layer.get_input(0).name]
            if source.type != trt.LayerType.MATRIX_MULTIPLY:
                raise ConfigError(
                    f"In the parsed network {source.name} stands between scores and softmax, so that attention would "
                    "not be fused; please report it."
                )


def _product_types(trt: Any, network: Any) -> dict[str, int]:
    layers = [network.get_layer(k) for k in range(network.num_layers)]
    products = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    return dict(Counter(str(layer.get_output(0).dtype).rpartition(".")[2] for layer in products))


def _timing_cache(config: Any, path: Path | None) -> Any:
    """The cache that the builder uses, with what `path` has of earlier builds; None where there is none."""
    if path is None:
        return None
    # It refuses what another version or another GPU has timed; then it begins anew.
    for kept in (path.read_bytes() if path.exists() else b"", b""):
        cache = config.create_timing_cache(kept)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _logger(trt: Any, messages: list[str]) -> Any:
    """Keeps what the library says of errors for the exception that they end in; it would print them otherwise."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                messages.append(message)

    return Logger()


def _monitor(trt: Any, name: str, on_stage: OnStage) -> Any:
    """Shows the builder's outer phases as stages."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.advance: dict[str, Callable[[], None]] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.advance[phase] = on_stage(f"{name}: {phase}", steps)

        def phase_finish(self, phase: str) -> None:
            self.advance.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self.advance:
                self.advance[phase]()
            return True

    return Monitor()
