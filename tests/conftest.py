"""What several test modules share."""

from __future__ import annotations

import functools
import gc
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor, nn

from ddt_accel import SamplingSpec, calibrate, export, load_model, solve
from ddt_accel.exporting import export as exporting
from ddt_accel.exporting import onnx as onnx_export
from ddt_accel.fitting.joint import JointFit
from ddt_accel.fitting.search import SearchSpec
from ddt_accel.networks.checkpoints import tensors_sha256
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.ddt.network import DDT

TINY = DDTConfig(
    in_channels=3, patch_size=2, num_groups=2, hidden_size=16, num_blocks=2, num_encoder_blocks=1, num_classes=4
)

# Modules that export, compile, fit, build engines, start many processes or take seconds to import; `make test-quick`
# leaves them out, and what needs the workspace that is made with an export.
SLOW = {
    "test_aligned", "test_backends", "test_budgets", "test_calibration", "test_capture", "test_cli", "test_closed_loop",
    "test_coarser", "test_compare", "test_compiled", "test_concurrency", "test_conformance", "test_console",
    "test_contexts", "test_crew", "test_device", "test_diffusers_pipeline", "test_distribution", "test_docs",
    "test_engines", "test_evaluate", "test_family_trajectories", "test_file_systems", "test_fine_tuning",
    "test_fitting", "test_forecast", "test_gpu_benchmark", "test_guide", "test_inspect", "test_optimize",
    "test_optimizing", "test_plan", "test_rae_decoder", "test_replays", "test_report", "test_routed_training",
    "test_runs_of_images", "test_sampler", "test_samples", "test_sampling", "test_search", "test_serving",
    "test_serving_core", "test_shards", "test_shipped", "test_solving_widths", "test_status", "test_studio_page",
    "test_train_command", "test_width_calibration", "test_width_trajectories", "test_workers",
}  # fmt: skip


def pytest_configure() -> None:
    """What is started in the background of a shell ignores Ctrl-C, and so would all commands that are tried here."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Modules of which `make test-quick` runs nothing are not imported either, which takes seconds."""
    named = any(collection_path.name in argument for argument in config.args)
    return True if config.option.markexpr == "not slow" and collection_path.stem in SLOW and not named else None


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if item.path.stem in SLOW or "made" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What is imported by now stays, and is not looked through each time that memory is tidied."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Reference:
    """What the published implementation computed for a small network of random weights."""

    case: dict[str, Any]
    tensors: dict[str, Tensor]
    checkpoint: Path

    @property
    def config(self) -> dict[str, int]:
        return self.case["config"]


@pytest.fixture(scope="session", params=["small_square", "small_shifted"])
def reference(request) -> Reference:
    folder = Path(__file__).parent / "reference" / request.param
    return Reference(
        case=json.loads((folder / "case.json").read_text()),
        tensors=safetensors.torch.load_file(folder / "tensors.safetensors"),
        checkpoint=folder / "checkpoint.ckpt",
    )


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder by name, unless another worker of pytest-xdist has: what lies there is only read."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def shared(name: str, make: Callable[[Path], object]) -> Path:
        folder = base / "shared" / name
        if folder.exists():
            return folder
        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.with_name(f"{name}.lock")):
            if not folder.exists():
                making = folder.with_name(f"{name}.making")
                shutil.rmtree(making, ignore_errors=True)  # of a worker that failed
                making.mkdir()
                make(making)
                making.rename(folder)
        return folder

    return shared


class Contents(pickle.Pickler):
    """Writes tensors as their values: a storage is pickled differently each time."""

    def persistent_id(self, thing: object) -> object:
        if not isinstance(thing, Tensor):
            return None
        return str(thing.dtype), thing.shape, thing.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def sha256_of_contents(thing: object) -> str:
    Contents(written := io.BytesIO()).dump(thing)
    return hashlib.sha256(written.getvalue()).hexdigest()


@pytest.fixture(scope="session", autouse=True)
def written_once(once) -> Iterator[None]:
    """PyTorch's exporter takes seconds for a network: what it has made of one is copied where that is exported again.

    All that comes after, the comparison with PyTorch first of all, is done each time. Its table of operators, which it
    makes anew for every network, is a fifth of these seconds, and made once.
    """
    with pytest.MonkeyPatch.context() as patch:

        @functools.cache
        def one_table() -> None:
            """When something is exported, for machines that run the rest of the tests without the exporter."""
            from torch.onnx._internal.exporter import _registration as operators

            table = functools.cache(operators.ONNXRegistry.from_torchlib)
            patch.setattr(operators.ONNXRegistry, "from_torchlib", staticmethod(table))

        def copied(network: nn.Module, inputs: dict[str, Tensor], output: str, path: Path) -> None:
            given = [(name, tensor.dtype, tensor.shape) for name, tensor in inputs.items()]
            # The two networks of an export share modules: written, the first puts the second into this mode, too.
            one_table()
            everything = (network.eval(), given, output, path.name, onnx_export.EXTERNAL_DATA_FROM)
            made = once(
                f"network-{sha256_of_contents(everything)}",
                lambda folder: onnx_export.write_network(network, inputs, output, folder / path.name),
            )
            for file in made.iterdir():
                shutil.copyfile(file, path.parent / file.name)

        patch.setattr(exporting, "write_network", copied)
        yield


@pytest.fixture(scope="session")
def tiny_model_path(once) -> Path:
    """A network for [3, 8, 8] with four named classes, all of its weights random, released as training does it."""
    return once("tiny", lambda folder: write_tiny_model(folder / "tiny.safetensors", seed=0)) / "tiny.safetensors"


def write_tiny_model(path: Path, *, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: 0.15 * torch.randn(tensor.shape, generator=generator) for name, tensor in DDT(TINY).state_dict().items()
    }
    description = {
        "config": json.dumps(asdict(TINY)),
        "latent_shape": json.dumps([3, 8, 8]),
        "class_names": json.dumps(["ant", "bee", "cat", "dog"]),
        "tensors_sha256": tensors_sha256(tensors),
    }
    safetensors.torch.save_file(tensors, path, description)
    return path


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def assert_sentence(ran: Result, said: str) -> None:
    assert ran.code == 2, ran
    assert said in " ".join(ran.err.split()), ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


def typed(*arguments: object) -> int:
    """The exit code of a command line that is run in this process."""
    from ddt_accel.cli.app import main  # a GPU machine may lack what only the command line takes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ddt-accel", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@pytest.fixture
def cli(capfd):
    """Runs a command line in this process, and tells what it said."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = typed(*arguments)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def made(tiny_model_path, once) -> Path:
    """A workspace with a calibration, a schedule and an export of the tiny model; `workspace` is a copy to change."""

    def make(folder: Path) -> None:
        for command in (
            ["calibrate", "--model", tiny_model_path, "--steps", 6, "--samples", 2],
            ["solve", "--budget", 2],
            ["export"],
        ):
            assert typed(*command, "--workspace", folder) == 0

    return once("made", make)


# An export takes seconds: those of the tiny model, by name. "states" is written as large networks are, with its weights
# in files beside the graphs.
EXPORTS: dict[str, dict[str, Any]] = {
    "fp16": {"precision": "fp16"}, "forecasts": {"sources": 2}, "states": {"sources": 3, "cache": "state"}
}  # fmt: skip


@pytest.fixture(scope="session")
def exports(tiny_model_path, made, once) -> Callable[[str], Path]:
    """The tiny model's export of `EXPORTS`, or that in fp32, made when it is asked for."""

    def make(name: str, folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if name == "states":
                patch.setattr(onnx_export, "EXTERNAL_DATA_FROM", 0)
            export(load_model(tiny_model_path), folder, **EXPORTS[name])

    def exported(name: str) -> Path:
        return made / "export" if name == "fp32" else once(name, functools.partial(make, name))

    return exported


@pytest.fixture
def traced(monkeypatch) -> None:
    """Compiled networks are captured and run as they are: `test_backends` and `test_conformance` have what PyTorch's
    compiler makes of them, which takes it many seconds."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.fixture
def no_compiler() -> Iterator[None]:
    """A machine without a C++ compiler, and without what was compiled on it before."""
    from torch._inductor import config

    torch.compiler.reset()
    with config.patch({"cpp.cxx": (None, "/no/such/compiler"), "force_disable_caches": True}):
        yield


@pytest.fixture
def searched_briefly(monkeypatch) -> None:
    """What is fitted is chosen among few patterns; `test_search` has thorough searches."""
    few = SearchSpec(shifts=(1.0,), expanded=1)
    monkeypatch.setitem(JointFit.__init__.__kwdefaults__, "search", few)


@pytest.fixture
def solved(tiny_model_path, tmp_path) -> Path:
    """A workspace with a calibration and a schedule of the tiny model, made in this process, faster than `made`."""
    folder = tmp_path / "solved"
    statistics = calibrate(load_model(tiny_model_path), SamplingSpec(num_steps=6), 2, sensitivity_samples=2)
    statistics.save(folder / "calibration.safetensors")
    solve(statistics, 2).save(folder / "schedule.json")
    return folder


@pytest.fixture
def workspace(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"
