"""What the machine at hand computes fastest, and what it computes exactly."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import Literal

import torch
from torch import nn

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]

# Values of oneDNN's ONEDNN_MAX_CPU_ISA that keep it from bf16 instructions
# (https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html).
WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}


def cpu_has_bf16() -> bool:
    """Whether an x86 CPU has bf16 instructions, and oneDNN, by which torch uses them, is allowed to."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_BF16:
        return False
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16"))


def fastest_precision(device: torch.device, network: nn.Module) -> Precision:
    """The precision to train a network in: reduced where the device is faster with it, else full.

    Emulated bf16 gives right results many times slower, so it is chosen only for x86 CPUs with bf16 instructions and
    for CUDA devices from compute capability 8.0; older ones from 7.0 have half precision. On a CPU a network that
    learns in grouped convolutions, such as MobileNetV2's depthwise ones, is trained in full precision: their backward
    pass is slow in bf16, as ``python -m benchmarks precision`` shows; while they are frozen it is not needed.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16-mixed" if major >= 8 else "16-mixed" if major >= 7 else "32-true"
    if device.type == "cpu" and cpu_has_bf16():
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        learns = any(convolution.groups > 1 and convolution.weight.requires_grad for convolution in convolutions)
        return "32-true" if learns else "bf16-mixed"
    return "32-true"


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute what is scored in the weights' own precision, whatever precision a network is trained in.

    Scores would otherwise depend on the machine: of 2,000 images bf16 gave 14 another class than full precision did.
    On CUDA convolutions don't round to TF32 either.
    """
    cudnn = torch.backends.cudnn
    rounds = device.type == "cuda" and cudnn.allow_tf32
    try:
        if rounds:
            cudnn.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if rounds:
            cudnn.allow_tf32 = True


def fastest_memory_format(device: torch.device) -> torch.memory_format:
    """Channels last where convolutions are faster with it: on CPU and CUDA, not on MPS."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


@cache
def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones; only glibc on Linux needs it.

    By default glibc maps each large tensor anew and unmaps it when it is freed, so that the kernel zeroes every page of
    it in every step: up to two thirds of the time of a step on a CPU. What threads free is kept for all of
    them, or else each thread that decodes images would keep what its largest one took. mallopt(3) describes all this.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
        for threshold in (trim_threshold, mmap_threshold):
            mallopt(threshold, 2**31 - 1)  # the most that it takes
        arena_max = -8  # M_ARENA_MAX
        mallopt(arena_max, 1)
