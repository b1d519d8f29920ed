"""How many kernels a run of each compiled network launches on a GPU, counted without one.

PyTorch's Inductor generates its Triton code from shapes and types alone: tensors are fake ones "on CUDA", the card is
one that exists only as its properties (an H100's), and nothing is run. Attention is taken to be one fused kernel, as
it is there. What is compiled is what `CompiledBackend` compiles; `--batch` counts images, guided, two rows for each.
The networks are of the published size. Wide kernels compute addresses in 64 bits, which takes longer. Takes the
packages torch and triton; a CPU's PyTorch will do. `--earlier` counts what they were before rotated halves were cast
ahead of their being joined, the encoder ended at the state, and slots were a tensor for each block.

Usage: python benchmarks/kernels.py [--model xl2-256|xl2-512] [--batch 32]
           [--networks encoder,decoder-0,decoder-2] [--cache modulations|state] [--earlier] [--code FOLDER] [--out FILE]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._inductor.compile_fx
from earlier import join_wide
from setting import RANDOM, XL2
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import joint_graph_passes
from torch._inductor.fx_passes.post_grad import post_grad_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils import _triton

from ddt_accel.backends.networks import DecoderNetwork, EncoderNetwork
from ddt_accel.backends.tensors import Cut, tensor_table
from ddt_accel.networks import prepared_layers
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.networks.families import prepare
from ddt_accel.networks.prepared import Arithmetic

H100 = SimpleNamespace(
    major=9, minor=0, multi_processor_count=132, regs_per_multiprocessor=65536, warp_size=32, total_memory=80 << 30,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472, L2_cache_size=50 << 20,
    name="H100", gcnArchName="", is_integrated=0, uuid="none", pci_bus_id=0,
)  # fmt: skip
FUSED = torch.ops.aten._scaled_dot_product_flash_attention


def pretend() -> None:
    """That there is such a card."""
    interface: Any = CudaInterface
    for owner in (torch.cuda, interface, interface.Worker):
        owner.get_device_properties = staticmethod(lambda *a, **k: H100)
        owner.current_device = staticmethod(lambda: 0)
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_capability = lambda *a: (9, 0)  # type: ignore[assignment]
    interface.is_available = interface.is_triton_capable = staticmethod(lambda *a: True)
    interface.get_compute_capability = staticmethod(lambda *a: 90)
    interface.raise_if_triton_unavailable = staticmethod(lambda *a: None)
    _triton.triton_hash_with_backend = lambda: "none"
    prepared_layers.attend = lambda q, k, v: FUSED(q, k, v)[0]  # type: ignore[attr-defined]


def generated(network: str, shape: tuple[int, int, int], batch: int, cut: Cut, *, earlier: bool = False) -> str:
    """The program that Inductor writes for a network at so many images."""
    with torch.device("meta"), mock.patch.object(Tensor, "item", return_value=99.0):  # of scores
        prepared = prepare(DDT(XL2).requires_grad_(False), shape, Arithmetic.of(cut.precision))
    if earlier:
        join_wide(prepared)
    module: Any = EncoderNetwork(prepared, cut) if network == "encoder" else DecoderNetwork(prepared, cut)
    # The encoder's program ends at the state; of that, products make modulations.
    apart = network == "encoder" and cut.blockwise
    table = tensor_table(XL2, shape, replace(cut, cache="state") if apart else cut)[network]
    fake = FakeTensorMode()
    with fake:
        *inputs, output = (torch.empty(one.at(2 * batch), dtype=getattr(torch, one.dtype)) for one in table)
        weights = {
            name: torch.empty(one.shape, dtype=one.dtype)
            for name, one in (*module.named_buffers(), *module.named_parameters())
        }

        def write(output: Tensor, *given: Tensor) -> Tensor:
            named = dict(zip(weights, given[len(inputs) :], strict=True))
            return output.copy_(torch.func.functional_call(module, named, given[: len(inputs)]))

        # PyTorch for CPUs cannot trace on CUDA: it is traced on the CPU, and the graph moved.
        arguments = (output, *inputs, *weights.values())
        with torch.no_grad():
            graph = make_fx(write, decomposition_table=select_decomp_table())(*arguments)
        for node in graph.graph.nodes:
            if node.kwargs.get("device") is not None:
                node.kwargs = {**node.kwargs, "device": torch.device("cuda")}
        moved = [torch.empty(one.shape, dtype=one.dtype, device="cuda") for one in arguments]
    FakeTensorProp(graph, fake).propagate_dont_convert_inputs(*moved)
    with V.set_fake_mode(fake):
        joint_graph_passes(graph)
        post_grad_passes(graph, is_inference=True)
        lowering = GraphLowering(graph)
        with V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]), V.set_debug_handler(DebugContext()):
            lowering.run(*moved)
            code: Any = lowering.codegen()[0]
    return str(getattr(code, "value", code))


def count(code: str) -> dict[str, int]:
    """Kernels that a run launches: Triton's, and those of libraries."""
    body = code[code.index("def call(") :]
    libraries = len(re.findall(r"extern_kernels\.\w+\(|= torch\.ops\.[\w.]+\(", body))
    ours = len(re.findall(r"\.run\(", body))
    wide = len(re.findall(r"= (?:tl\.program_id\(0\)|xoffset).*tl\.int64", code))
    return {"triton": ours, "library": libraries, "all": ours + libraries, "wide": wide}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="xl2-256", choices=("xl2-256", "xl2-512"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--networks", default="encoder,decoder-0,decoder-2,decoder-3", help="decoder-S: by forecast")
    parser.add_argument("--cache", default="modulations")
    parser.add_argument("--earlier", action="store_true")
    parser.add_argument("--code", type=Path, help="a folder to keep the generated programs in")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    pretend()
    told = f"{arguments.model}, bf16, batch {arguments.batch} guided, cache of {arguments.cache}"
    told += f"{', as it was' * arguments.earlier}; sm_90, generated "
    told += f"by torch {torch.__version__} for triton {importlib.metadata.version('triton')}, not run"
    print(f"{told}\n\n| network | Triton kernels | library kernels | in all | with 64-bit addresses |")
    print("|---|---|---|---|---|")
    found = {}
    for name in arguments.networks.split(","):
        network, _, sources = name.partition("-")
        cut = Cut(precision="bf16", cache=arguments.cache, sources=int(sources or 0), blockwise=not arguments.earlier)
        code = generated(network, RANDOM[arguments.model][1], arguments.batch, cut, earlier=arguments.earlier)
        found[name] = count(code)
        if network == "encoder" and cut.cache == "modulations" and cut.blockwise:
            found[name]["library"] += len(XL2.modulation_widths)
            found[name]["all"] += len(XL2.modulation_widths)
        print(f"| {name} | " + " | ".join(map(str, found[name].values())) + " |", flush=True)
        if arguments.code:
            (arguments.code / f"{name}.py").write_text(code)
    if arguments.out:
        arguments.out.write_text(json.dumps({"conditions": told, "kernels": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
