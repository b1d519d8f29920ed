"""Export of encoder and decoder to two ONNX files, each compared with PyTorch before it gets its name."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ddt_accel.artifacts import sha256_of
from ddt_accel.backends.manifest import Manifest, finish_publication, publish
from ddt_accel.errors import ArtifactError, ConfigError, DependencyError, ParityError
from ddt_accel.exporting.networks import DecoderNetwork, EncoderNetwork, in_precision
from ddt_accel.networks.ddt import DDT

OPSET = 20
# The largest error, relative to the largest value of the output, that an export may have.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}
PARITY_BATCH = 3
# Protocol buffers end at 2 GiB; from here on the weights go into a file beside the graph.
EXTERNAL_DATA_FROM = 1 << 30
STAGES = ("encoder", "decoder", "comparison")
STAGING_PREFIX = ".export-staging-"


def export(
    model: DDT,
    out_dir: str | Path,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    latent_shape: tuple[int, int, int] | None = None,
    on_stage: Callable[[], None] = lambda: None,
) -> Manifest:
    """Writes `encoder.onnx`, `decoder.onnx` and `manifest.json` into `out_dir`, with a dynamic batch.

    `latent_shape` (C, H, W) is needed where the model does not know its own. An earlier export in `out_dir` is replaced
    only once the new one has passed. `on_stage` is called after each of the STAGES. Raises ParityError where ONNX
    Runtime and PyTorch disagree.
    """
    if format != "onnx":
        raise ConfigError(f"format is {format!r}; this version exports 'onnx'.")
    if precision not in TOLERANCE:
        raise ConfigError(f"precision is {precision!r}; choose one of {', '.join(TOLERANCE)}.")
    latent_shape = latent_shape or (model.source.latent_shape if model.source else None)
    if latent_shape is None:
        raise ConfigError("The model does not say which latents it is for; give latent_shape=(C, H, W).")
    tokens = model.config.num_tokens(latent_shape)
    versions = _versions()

    reference, reduced = in_precision(model, "fp32"), in_precision(model, precision)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((PARITY_BATCH, *latent_shape), generator=generator)
    times = torch.rand(PARITY_BATCH, generator=generator)
    labels = torch.arange(PARITY_BATCH) % (model.config.num_classes + 1)
    with torch.inference_mode():
        modulations = reference.modulations(reference.encode(latents, times, labels))
        velocity = reference.decode_modulated(latents, modulations)
        # Fills the cache of rotary tables, which become constants of the graph; an export itself sees no values.
        reduced.encode(latents.to(dtype), times, labels)
    reduced_modulations = modulations.to(dtype).clone()

    folder = Path(out_dir)
    staging = _staging(folder)
    try:
        encoder_inputs = {"latents": latents, "times": times, "labels": labels}
        decoder_inputs = {"latents": latents, "modulations": reduced_modulations}
        _export_network(EncoderNetwork(reduced), encoder_inputs, "modulations", staging / "encoder.onnx")
        on_stage()
        _export_network(DecoderNetwork(reduced), decoder_inputs, "velocity", staging / "decoder.onnx")
        on_stage()
        parity = {
            "encoder": _parity(staging / "encoder.onnx", encoder_inputs, modulations),
            "decoder": _parity(staging / "decoder.onnx", decoder_inputs, velocity),
        }
        on_stage()
        for network, error in parity.items():
            if not error <= TOLERANCE[precision]:
                raise ParityError(
                    f"The exported {network} is {error:.2e} away from PyTorch; {precision} allows "
                    f"{TOLERANCE[precision]:.0e}. Nothing was written; try --precision fp32."
                )
        name = str(dtype).removeprefix("torch.")
        image = ["B", *latent_shape]
        modulation = ["modulations", name, ["B", tokens, model.config.modulation_size]]
        manifest = Manifest(
            format=format,
            model=model.source.name if model.source else "unnamed",
            checkpoint_sha256=model.source.sha256 if model.source else None,
            config=model.config,
            latent_shape=latent_shape,
            class_names=model.source.class_names if model.source else None,
            precision=precision,
            opset=OPSET,
            files={path.name: sha256_of(path) for path in sorted(staging.iterdir())},
            tensors={
                "encoder": [["latents", "float32", image], ["times", "float32", ["B"]], ["labels", "int64", ["B"]],
                            modulation],
                "decoder": [["latents", "float32", image], modulation, ["velocity", "float32", image]],
            },
            parity=parity,
            versions=versions,
        )  # fmt: skip
        manifest.save(staging)
        publish(staging, folder)
    except OSError as error:
        raise ArtifactError(
            f"The export to {folder} could not be written ({error.strerror or error}); free space or choose another "
            "place. An earlier export is as it was."
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _export_network(network: nn.Module, inputs: dict[str, Tensor], output: str, path: Path) -> None:
    import onnx

    batch = torch.export.Dim("batch", min=1)
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    with warnings.catch_warnings():
        # The exporter warns of its own internals and of an absent torchvision.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            network.eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            opset_version=OPSET,
            dynamo=True,
            external_data=size >= EXTERNAL_DATA_FROM,
            verbose=False,
        )
    onnx.checker.check_model(path, full_check=size < EXTERNAL_DATA_FROM)


def _parity(path: Path, inputs: dict[str, Tensor], expected: Tensor) -> float:
    """The largest error of ONNX Runtime against PyTorch in float32, relative to the largest expected value.

    Also on another batch size than the exported one, which catches a batch dimension that was baked in.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    errors = []
    for rows in (len(expected), 1):
        (got,) = session.run(None, {name: tensor[:rows].numpy() for name, tensor in inputs.items()})
        difference = torch.from_numpy(got).float() - expected[:rows]
        errors.append((difference.abs().max() / expected[:rows].abs().max().clamp_min(1e-12)).item())
    return max(errors)


def _versions() -> dict[str, str]:
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise DependencyError(
            f"ONNX export needs the package {error.name}; install ddt-accel[cpu] or ddt-accel[gpu]."
        ) from None
    packages = {"torch": torch, "onnx": onnx, "onnxscript": onnxscript, "onnxruntime": onnxruntime}
    return {name: str(package.__version__) for name, package in packages.items()}


def _staging(folder: Path) -> Path:
    """A new folder inside `folder`; what killed exports left behind is removed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        finish_publication(folder)
        for leftover in folder.glob(f"{STAGING_PREFIX}*"):
            shutil.rmtree(leftover)
        return Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=folder))
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be written to ({error.strerror}); choose another place.") from None
