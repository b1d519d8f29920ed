"""Parts of `gpu.py` that measure no trajectory: what the machine is, whether tests pass, how long compiling takes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_part import Part
from parts import machine
from torch.nn import functional as F

from ddt_accel import Schedule
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.networks.device import device_name
from ddt_accel.networks.split import latent_shape_of

PACKAGES = ("triton", "numpy", "onnx", "tensorrt", "tensorrt_rtx", "onnxruntime", "onnxruntime-gpu")


def probe(part: Part) -> None:
    """What the machine is, and what it can do at most."""
    part.tell("card", device_name(part.device))
    part.tell("networks", "tiny" if part.reduced else "published sizes, random weights")
    part.tell("python", platform.python_version())
    part.tell("torch", str(torch.__version__))
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            part.tell(name, importlib.metadata.version(name))
    part.tell("processors", os.cpu_count() or 0)
    if part.cuda:
        part.tell("capability", "sm_{}{}".format(*torch.cuda.get_device_capability(part.device)))
        part.tell("memory", torch.cuda.get_device_properties(part.device).total_memory / 1e9, "GB")
        part.tell("cuda", str(torch.version.cuda))
        with part.trying("driver"):
            asked = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
            told = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout
            part.tell("driver", told.partition("\n")[0])
    for name, dtype, tf32 in (("bf16", torch.bfloat16, 0), ("fp32", torch.float32, 0), ("tf32", torch.float32, 1)):
        torch.backends.cuda.matmul.allow_tf32 = bool(tf32)
        with part.trying(f"{name} product"):
            products, copied = machine(dtype, part.device, 0.3, reduced=part.reduced)
            part.tell(f"{name} product", products / 1e12, "T multiply-adds/s")
            if name == "bf16":
                part.tell("copy", copied / 1e9, "GB/s")
    torch.backends.cuda.matmul.allow_tf32 = False
    for tokens in (256, 1024):
        attention(part, tokens)


def attention(part: Part, tokens: int) -> None:
    """Kernels of scaled dot products at head size 72, which is no power of two."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
             "memory-efficient": SDPBackend.EFFICIENT_ATTENTION, "two products": SDPBackend.MATH}  # fmt: skip
    size = (2, 2, 16, 72) if part.reduced else (64, 16, tokens, 72)
    query, key, value = (torch.randn(size, device=part.device, dtype=torch.bfloat16) for _ in range(3))

    def attend() -> None:
        F.scaled_dot_product_attention(query, key, value)

    with part.trying(f"attention {tokens} tokens, by itself"):
        part.tell(f"attention {tokens} tokens, by itself", 1e3 * part.seconds(attend, within=0.2), "ms")
    for name, kernel in names.items():
        with part.trying(f"attention {tokens} tokens, {name}"), sdpa_kernel(kernel):
            part.tell(f"attention {tokens} tokens, {name}", 1e3 * part.seconds(attend, within=0.2), "ms")


def tests(part: Part, *files: str) -> None:
    """What needs a GPU among the tests, each outcome when it is there."""
    import pytest

    class Outcomes:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.outcome != "passed":
                said = str(report.longrepr).strip().splitlines()[-1:] if report.failed else []
                name = report.nodeid.rpartition("/")[2]
                part.tell(name, report.outcome, seconds=round(report.duration, 2), said=said)

    os.chdir(Path(__file__).parent.parent)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    together = ["-p", "xdist.plugin", "-n", "4"] if importlib.util.find_spec("xdist") and len(files) > 1 else []
    options = [*together, "-m", "gpu", "-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:cacheprovider", "-q"]
    part.tell("exit code", int(pytest.main([*options, *(f"tests/{name}" for name in files)], plugins=[Outcomes()])))


def commands(part: Part) -> None:
    """What a user types, on the embedded model: whether each ends well, and the last that it says."""
    with tempfile.TemporaryDirectory(prefix="ddt-accel-") as folder:
        place, device = ["-w", folder], ["-w", folder, *([] if part.reduced else ["--device", "cuda"])]
        lines = (
            ["sample", "--schedule", "cifar10-10of50", "--model", "cifar10", "--images", "2", "--backend", "torch",
             *device],
            ["calibrate", "--samples", "2", "--sensitivity-samples", "1", *device],
            ["solve", "--budget", "10", *place],
            ["sample", "--images", "4", "--backend", "compiled", *device],
            ["fit", "--iterations", "2", "--images", "4", "--held-out", "4", "--batch-size", "2", *device],
            ["optimize", "--speedup", "5", "--quick", *device],
            ["sample", "--images", "4", "--backend", "auto", *device],
        )  # fmt: skip
        for line in lines[: 1 if part.reduced else None]:
            name = " ".join(line[: line.index("-w")])
            with part.trying(name, needs=5):
                ended = subprocess.run(
                    [sys.executable, "-m", "ddt_accel", *line], text=True, capture_output=True, timeout=part.left
                )
                said = ended.stderr.strip().splitlines()
                part.tell(name, "done" if ended.returncode == 0 else f"failed with {ended.returncode}", said=said[-3:])
                print(*said, sep="\n", flush=True)


def compiling(part: Part, name: str, drawn: tuple[int, ...] = (0, 2, 3)) -> None:
    """Seconds until everything that a trajectory takes is compiled."""
    part.load_compiled()
    model = part.network(name)
    backend, shape = CompiledBackend(model), latent_shape_of(model)
    batch = 2 if part.reduced else 32
    session, rows = backend.open(batch, shape, 3), slice(0, 2 * batch)
    session.latents.normal_()
    session.times.fill_(0.5)
    for slot in range(3):
        session.encode(slot, rows)
    part.tell("encoder", backend.compile_seconds, "s")
    part.keep_compiled()
    for sources in drawn:
        before = backend.compile_seconds
        if sources:
            session.forecast(3, [(s, 1 / sources) for s in range(sources)], None, rows)
        session.decode(3 if sources else 0, rows)
        part.tell(f"decoder, {sources} sources", backend.compile_seconds - before, "s")
        part.keep_compiled()


def compiling_published(part: Part, weights: str) -> None:
    """Seconds of a trajectory of three steps, of which two refresh."""
    from peers import published, published_network

    if part.clone is None:
        part.tell("published", None, reason="no clone of github.com/MCG-NJU/DDT in the checkout")
        return
    part.load_compiled()
    noise, labels = part.images(2 if part.reduced else 32)
    few, bf16 = Schedule.uniform(replace(part.spec, num_steps=3), 1), weights == "bf16"
    network = published_network(part.clone, part.model, compiled=True, bf16=bf16)
    draw = published(network, part.model, few, autocast=not part.reduced or bf16)
    part.tell(f"published, {weights} weights", part.once(partial(draw, noise, labels)), "s")
    part.keep_compiled()
