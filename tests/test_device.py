"""What a device multiplies fast, found by measuring, and how much it holds."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys

import pytest
import torch

from ddt_accel.networks.device import bf16_gain, full_float32, memory_of, supports_bf16

CPU = torch.device("cpu")


def test_bf16_is_measured_once_and_decides() -> None:
    assert supports_bf16(CPU) == (bf16_gain() > 1)
    assert bf16_gain.cache_info().misses <= 1


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="this processor has no bf16 to do without")
def test_a_processor_whose_libraries_make_nothing_of_bf16_takes_fp32() -> None:
    """As on processors with AVX2 only; the flag of this one still says that it has bf16."""
    code = (
        "import torch; from ddt_accel.networks.device import supports_bf16\n"
        "print(torch.cpu._is_avx512_bf16_supported(), supports_bf16(torch.device('cpu')))"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["True", "False"]


def test_float32_is_no_tensorfloat32_whatever_the_environment_says(tiny_model_path) -> None:
    """The flags of CUDA are there without a GPU."""
    code = f"""
import torch
from ddt_accel import load_model
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.networks.device import full_float32
matmul = torch.backends.cuda.matmul
print(matmul.allow_tf32)
with full_float32(torch.device("cuda")):
    print(matmul.allow_tf32)
print(matmul.allow_tf32)
model = load_model({str(tiny_model_path)!r})
session = TorchBackend(model).open(1, (3, 8, 8), 1)
session.device = torch.device("cuda")  # it says so
for layer in (model.blocks[0], model.blocks[-1], model.modulation_maps[0]):
    layer.register_forward_pre_hook(lambda *_: print(matmul.allow_tf32))
session.encode(0, slice(0, 2))
session.decode(0, slice(0, 2))
print(matmul.allow_tf32)
"""
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["True", "False", "True", "False", "False", "False", "True"]


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="an older PyTorch")
def test_what_a_process_has_chosen_for_its_own_products_stays() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for chosen in ("tf32", "ieee"):
            matmul.fp32_precision = chosen
            with contextlib.suppress(ValueError), full_float32(torch.device("cuda")):
                assert matmul.fp32_precision == "ieee"
                raise ValueError
            assert matmul.fp32_precision == chosen
        with full_float32(CPU):
            pass
    finally:
        matmul.allow_tf32 = False
        matmul.fp32_precision = before


def test_convolutions_are_in_float32_too() -> None:
    """By default PyTorch convolves as TensorFloat32 on a GPU."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    assert before
    with full_float32(torch.device("cuda")):
        assert not cudnn.allow_tf32
    assert cudnn.allow_tf32 == before


def test_memory_is_what_the_process_may_use() -> None:
    with open("/proc/meminfo") as file:
        total = 1024 * int(file.readline().split()[1])
    assert 0 < memory_of(CPU) <= 1.01 * total
    allowed = resource.getrlimit(resource.RLIMIT_AS)
    limit = 1 << 44  # more than there is, less than unlimited
    resource.setrlimit(resource.RLIMIT_AS, (limit, allowed[1]))
    try:
        assert memory_of(CPU) <= limit
    finally:
        resource.setrlimit(resource.RLIMIT_AS, allowed)
