"""`export`: encoder and decoder as two ONNX files or two TensorRT engines, compared with PyTorch before they get their
names."""

from __future__ import annotations

import contextlib
import copy
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ddt_accel.artifacts import sha256_of, unwritable, write_arrays
from ddt_accel.backends.guided import check_guide
from ddt_accel.backends.manifest import (
    GUIDE_FOLDER,
    REFERENCE_FORMAT,
    REFERENCE_VERSION,
    TOLERANCE,
    WIDER,
    Engine,
    Manifest,
    finish_publication,
    publish,
    reference_name,
)
from ddt_accel.backends.networks import DecoderNetwork, EncoderNetwork
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.backends.tensorrt import gpu
from ddt_accel.backends.tensors import Cut, as_lists, network_name, tensor_table
from ddt_accel.errors import ConfigError, ParityError
from ddt_accel.exporting.engines import EngineOptions, build_engine, find_library
from ddt_accel.exporting.onnx import OPSET, parity, versions, write_network
from ddt_accel.exporting.reference import Reference, reference_points
from ddt_accel.locks import Say, making, nothing
from ddt_accel.networks.config import UNKNOWN
from ddt_accel.networks.dynamic.widths import narrow, widths_of
from ddt_accel.networks.families import prepare
from ddt_accel.networks.prepared import Arithmetic
from ddt_accel.networks.split import SplitNetwork, latent_shape_of
from ddt_accel.stages import OnStage, silent

FORMATS = ("onnx", "tensorrt")
STAGING_PREFIX = ".export-staging-"


def export(
    model: SplitNetwork,
    out_dir: str | Path,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    cache: str = "modulations",
    sources: int | None = None,
    latent_shape: tuple[int, int, int] | None = None,
    engines: EngineOptions | None = None,
    on_stage: OnStage = silent,
    say: Say = nothing,
    guide: SplitNetwork | None = None,
) -> Manifest:
    """Writes encoder, decoder and `manifest.json` into `out_dir`: "onnx" with a dynamic batch, or "tensorrt" engines.

    With `sources` of 1 to 3 the decoder makes forecasts itself, from up to so many states; engines always do, by
    default from 2, and by default ONNX files of a model on a GPU, too. `cache="state"` keeps states between refreshes
    instead of modulations, which are larger. `latent_shape` (C, H, W) is needed where the model does not know its own.
    An earlier export in `out_dir` is replaced only once the new one has passed. `on_stage` is called with what comes
    next and how many steps it takes, and returns what to call after each; `say` is told for whom it waits, where
    another process is exporting to `out_dir`.

    A network with nested widths is exported at each of them, unless another guides: then both run complete. That one,
    the `guide`, is exported alike, to the folder `guide` there. Raises MismatchError for
    a guide of other latents or classes, ParityError where the exported networks do not compute what PyTorch computes in
    float32.
    """
    cut = checked_cut(format, precision, cache, sources, engines, on_gpu=model.device.type == "cuda")
    if guide is not None:
        check_guide(TorchBackend(model), TorchBackend(guide))
    as_engines, sources = format == "tensorrt", cut.sources
    latent_shape = latent_shape_of(model, latent_shape)
    table = tensor_table(model.config, latent_shape, cut)
    widths = widths_of(model) if guide is None else (1.0,)
    # Files in bf16 are compared by PyTorch.
    known = versions(["onnx", "onnxscript", *([] if precision == "bf16" else ["onnxruntime"])])
    options = engines or EngineOptions()
    library = find_library(options.engine) if as_engines else None

    folder = Path(out_dir)
    with _staging(folder, say) as staging:
        errors, products = {}, {}
        for width in widths:
            done = on_stage(f"a trajectory to compare with{f', width {width:g}' * (width < 1)}", 1)
            network_at = model if width == 1.0 else narrow(model, width, known=False)
            points = reference_points(_reference(network_at), latent_shape, sources=sources, cache=cache)
            arithmetic = Arithmetic.of(precision, written_out=True, wide_softmax=library is None)
            prepared = prepare(network_at, latent_shape, arithmetic).cpu()
            inputs, outputs = _examples(points, cut)
            done()
            for kind, network in (
                ("encoder", EncoderNetwork(prepared, cut)),
                ("decoder", DecoderNetwork(prepared, cut)),
            ):
                name, (*_, output) = network_name(kind, width), table[kind]
                done = on_stage(f"{name}: ONNX", 1)
                write_network(network, inputs[kind], output.name, staging / f"{name}.onnx")
                done()
                done = on_stage(f"{name}: comparison with PyTorch", 1)
                if precision == "bf16":  # which ONNX Runtime has no kernels for on a CPU
                    errors[name] = _error(network, inputs[kind], outputs[kind])
                else:
                    errors[name] = parity(staging / f"{name}.onnx", inputs[kind], outputs[kind])
                done()
                _check_parity(name, errors[name], precision)
                if library is not None:
                    path = staging / f"{name}.engine"
                    built = build_engine(library, staging / f"{name}.onnx", path, table[kind], options, on_stage)
                    products[name] = built
                    for leftover in staging.glob(f"{name}.onnx*"):
                        leftover.unlink()
            if library is not None:
                _write_reference(staging / reference_name(width), points)
        engine = None
        if library is not None:
            engine = Engine(
                library=library.name,
                version=library.version,
                gpu=None if library.for_any_gpu else gpu(),
                batches=options.batches,
                version_compatible=options.version_compatible,
                hardware_compatible=options.hardware_compatible,
                products=products,
                verified=None,
            )
        manifest = Manifest(
            format=format,
            model=model.source.name if model.source else "unnamed",
            checkpoint_sha256=model.source.sha256 if model.source else None,
            config=model.config,
            latent_shape=latent_shape,
            class_names=model.source.class_names if model.source else None,
            precision=precision,
            cache=cache,
            sources=sources,
            opset=OPSET,
            files={path.name: sha256_of(path) for path in sorted(staging.iterdir())},
            tensors=as_lists(table, widths),
            parity=errors,
            engine=engine,
            versions=known,
            guide_sha256=None if guide is None else guide.source.sha256 if guide.source else UNKNOWN,
            widths=widths,
        )
        manifest.save(staging)
        if guide is not None:  # before the first network's, which names it
            export(
                guide, folder / GUIDE_FOLDER, format=format, precision=precision, cache=cache, sources=sources,
                latent_shape=latent_shape, engines=engines, on_stage=on_stage, say=say,
            )  # fmt: skip
        publish(staging, folder)
    return manifest


def _check_parity(name: str, error: float, precision: str) -> None:
    if not error <= TOLERANCE[precision]:
        wider = WIDER.get(precision)
        advice = f"try --precision {wider}" if wider else "please report it"
        raise ParityError(
            f"The exported {name} is {error:.2e} away from PyTorch in float32; {precision} allows "
            f"{TOLERANCE[precision]:.0e}. Nothing was written; {advice}."
        )


def checked_cut(
    format: str,
    precision: str,
    cache: str,
    sources: int | None,
    engines: EngineOptions | None,
    *,
    on_gpu: bool = False,
) -> Cut:
    """How an export with these settings cuts the networks apart; raises ConfigError where they do not go together.

    `on_gpu` says that it is for one, where a forecast made inside the decoder saves writing and reading the sum.
    """
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}; choose one of {', '.join(FORMATS)}.")
    as_engines = format == "tensorrt"
    if not as_engines and engines is not None:
        raise ConfigError("Options of engines mean nothing for ONNX files; leave them out, or build engines (--trt).")
    if sources is None:
        sources = 2 if as_engines or on_gpu else 0
    cut = Cut(precision=precision, cache=cache, sources=sources)
    if as_engines and sources == 0:
        raise ConfigError("The decoder of an engine makes the forecasts; give 1 to 3 sources.")
    if not as_engines and precision == "bf16":
        raise ConfigError("ONNX Runtime has no bf16 on CPUs; give fp32 or fp16, or build engines.")
    if cache == "state" and sources == 0:
        raise ConfigError("With the state as cache the decoder makes the forecasts; give 1 to 3 sources.")
    return cut


def _examples(points: Reference, cut: Cut) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Inputs of both networks by name, in the types of the cut, and the outputs that are expected for them."""
    dtype = getattr(torch, cut.dtype)
    refresh = {
        "latents": points.refresh_latents[-1], "times": points.refresh_times[-1], "labels": points.labels
    }  # fmt: skip
    cached = {name: points.caches[s].to(dtype) for s, name in enumerate(cut.caches())}
    forecast = {"weights": points.weights, "constant": points.constant} if cut.sources else {}
    inputs = {"encoder": refresh, "decoder": {"latents": points.latents, **cached, **forecast}}
    return inputs, {"encoder": points.caches[-1], "decoder": points.velocity}


def _reference(model: SplitNetwork) -> SplitNetwork:
    """The model in float32 on the CPU; a copy where it is not."""
    as_it_is = (model.device.type, model.dtype) == ("cpu", torch.float32)
    return model if as_it_is else copy.deepcopy(model).cpu().float()


@torch.inference_mode()
def _error(network: nn.Module, inputs: dict[str, Tensor], expected: Tensor) -> float:
    """The largest error of PyTorch in the network's own precision, relative to the largest expected value."""
    got = network(*inputs.values()).float()
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _write_reference(path: Path, points: Reference) -> None:
    """For the first run on a GPU, which verifies the engines; without the caches, which are large."""
    arrays = {name: value.numpy() for name, value in vars(points).items() if name != "caches"}
    write_arrays(path, REFERENCE_FORMAT, REFERENCE_VERSION, {}, arrays)


@contextlib.contextmanager
def _staging(folder: Path, say: Say) -> Iterator[Path]:
    """A new folder inside `folder`, for this process alone; what killed exports left behind is removed."""
    staging = folder / f"{STAGING_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with making(folder, say) as certain:
            finish_publication(folder)
            for leftover in folder.glob(f"{STAGING_PREFIX}*") if certain else ():
                shutil.rmtree(leftover)
            staging.mkdir()
            try:
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise unwritable(folder, error) from None
