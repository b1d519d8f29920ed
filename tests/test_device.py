"""What a device multiplies fast, found by measuring, and how much it holds."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
import torch

from ddt_accel.networks.device import bf16_gain, memory_of, supports_bf16

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
