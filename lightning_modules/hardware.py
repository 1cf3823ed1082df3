"""What the machine at hand computes fastest."""

import ctypes
import sys
from functools import cache
from typing import Literal

import torch

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


def fastest_precision(device: torch.device) -> Precision:
    """The precision to train in: reduced where the device has arithmetic for it, else full.

    Emulated bf16 gives right results many times slower, so it is chosen only for CPUs with bf16 instructions and
    for CUDA devices from compute capability 8.0; older ones from 7.0 have half precision.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16-mixed" if major >= 8 else "16-mixed" if major >= 7 else "32-true"
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("arm_bf16"):
            return "bf16-mixed"
    return "32-true"


def fastest_memory_format(device: torch.device) -> torch.memory_format:
    """Channels last where convolutions are faster with it: on CPU and CUDA, not on MPS."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


@cache
def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones; only glibc on Linux needs it.

    By default glibc maps each large tensor anew and unmaps it when it is freed, so that the kernel zeroes every page of
    it in every step: up to two thirds of the time of a step on a CPU. Both thresholds are described in mallopt(3).
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
        for threshold in (trim_threshold, mmap_threshold):
            mallopt(threshold, 2**31 - 1)  # the most that it takes
