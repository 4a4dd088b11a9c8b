"""Chooses the device and the arithmetic for this machine by probing the hardware."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from actors.errors import ConfigError

_CPU_LADDER = (1024,)
_GPU_LADDER = (16_384, 32_768, 65_536, 131_072)
# The rest of a process's share is for CUDA's context and kernels, which torch does not count.
_IN_TENSORS = 0.95


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a GPU.

    Attributes:
        allocated_bytes: In tensors of this process.
        reserved_bytes: Reserved by this process, in tensors or for the next ones.
        used_bytes: In use by all processes.
        total_bytes: Size of the GPU's memory.
    """

    allocated_bytes: int
    reserved_bytes: int
    used_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Compute:
    """Device and type that a model is computed with.

    Attributes:
        device: A CPU or a CUDA GPU.
        dtype: float32 or bfloat16, of weights and token states; pooling and normalising are always float32.
        int8: Linear layers multiply 8-bit integers (see `compute.int8`); only on a CPU, with `dtype` float32.
    """

    device: torch.device
    dtype: torch.dtype
    int8: bool = False

    @property
    def ladder(self) -> tuple[int, ...]:
        """Token budgets to try.

        A GPU needs thousands of rows to be busy. On a CPU one small budget is used: half of it and twice it differ by a few
        per cent (docs/log.md), and timing them at the start would mostly measure other load on the machine.
        """
        return _CPU_LADDER if self.device.type == "cpu" else _GPU_LADDER

    def memory(self) -> Memory | None:
        """Returns the GPU's current memory use; None on a CPU."""
        if self.device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self.device)
        return Memory(
            torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device), total - free, total
        )

    def limit_memory(self, share: float) -> None:
        """Limits the tensors of this process to a share of the GPU's memory; does nothing on a CPU or for a whole GPU.

        Without a limit each process keeps all memory that it ever used, and another one on the same GPU runs out of it
        whatever its own budget is.
        """
        if self.device.type == "cuda" and 0 < share < 1:
            torch.cuda.set_per_process_memory_fraction(share * _IN_TENSORS, self.device)


def find_compute(precision: str, device: str = "auto") -> Compute:
    """Chooses the device and type for a spec's precision class on this machine.

    Args:
        precision: "float32", "bfloat16" (16-bit arithmetic is allowed), or "int8".
        device: "auto", "cpu", "cuda" or "cuda:N". With "int8", "auto" is the CPU.

    Raises:
        ConfigError: The device is not available, or is a GPU with "int8".
    """
    int8 = precision == "int8"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and not int8 else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is not one; use 'auto', 'cpu', 'cuda' or 'cuda:N'.") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r} is not supported; use 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    if chosen.type == "cuda":
        gpus = torch.cuda.device_count()
        if (chosen.index or 0) >= gpus:
            raise ConfigError(
                f"device {device!r} is not there: this process sees {gpus} CUDA GPUs. Use 'auto'; on a cluster, install a "
                f"torch with CUDA on the machines with GPUs, or encode on CPUs with run.gpus_per_replica=0."
            )
        chosen = torch.device("cuda", chosen.index or 0)
    if int8:
        if chosen.type != "cpu":
            raise ConfigError(
                f"dtype int8 is for CPUs and the device is {device!r}. Use dtype auto, which is bfloat16 on a GPU, or device cpu."
            )
        return Compute(chosen, torch.float32, int8=True)
    wide = precision == "float32" or not (cpu_has_bfloat16() if chosen.type == "cpu" else _gpu_has_bfloat16(chosen))
    return Compute(chosen, torch.float32 if wide else torch.bfloat16)


def cpu_has_bfloat16() -> bool:
    """Returns True if the processor multiplies bfloat16 in hardware; otherwise it is emulated and slower than float32."""
    named = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    probes = [getattr(torch.cpu, name, None) for name in named]
    return any(probe() for probe in probes if probe is not None)


def _gpu_has_bfloat16(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns True if memory ran out: in torch's allocator, in CUDA itself, or in cuBLAS for its workspace."""
    message = str(error)
    in_library = "CUDA error: out of memory" in message or "CUBLAS_STATUS_ALLOC_FAILED" in message
    return isinstance(error, torch.OutOfMemoryError) or in_library


@contextmanager
def fitting(compute: Compute) -> Iterator[None]:
    """Names the cause and the fix if the model that is loaded does not fit the device."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the model does not fit the memory of {compute.device} ({error}). Use a larger GPU, end other "
            f"processes on it, or encode on the CPU (device='cpu', in a job run.gpus_per_replica=0)."
        ) from None


def is_device_lost(error: Exception) -> bool:
    """Returns True if no later call on the GPU succeeds in this process: an invalid address, a device-side assert, ECC.

    torch has a class for these errors since 2.8; before, only the message tells.
    """
    named = type(error).__name__ == "AcceleratorError" or str(error).startswith("CUDA error: ")
    return isinstance(error, RuntimeError) and named and not is_out_of_memory(error)
