"""What this machine can do: the device, and whether 16-bit arithmetic pays on it. Found out, never assumed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from actors.errors import ConfigError

_CPU_LADDER = (1024,)
_GPU_LADDER = (16_384, 32_768, 65_536, 131_072)


@dataclass(frozen=True, slots=True)
class Memory:
    """A card's memory.

    Attributes:
        allocated_bytes: In tensors of this process.
        reserved_bytes: Held by this process, in tensors or for the next ones.
        used_bytes: In use by all processes.
        total_bytes: What the card has.
    """

    allocated_bytes: int
    reserved_bytes: int
    used_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and in what type a model is computed.

    Attributes:
        device: A CPU or a CUDA card.
        dtype: float32 or bfloat16, of weights and token states; pooling and normalising are always float32.
        int8: Products of linear layers are of 8-bit integers (`integers`); only on a CPU, with `dtype` float32.
    """

    device: torch.device
    dtype: torch.dtype
    int8: bool = False

    @property
    def ladder(self) -> tuple[int, ...]:
        """Token budgets to try: a card needs thousands of rows to fill. On a CPU a small one is best, half of it and twice
        it are a few per cent apart (docs/log.md), and a race at the start would mostly time what else goes on there."""
        return _CPU_LADDER if self.device.type == "cpu" else _GPU_LADDER

    def memory(self) -> Memory | None:
        """The card's memory now; None on a CPU."""
        if self.device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self.device)
        return Memory(
            torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device), total - free, total
        )


def find_compute(precision: str, device: str = "auto") -> Compute:
    """The device and type for a spec's precision class on this machine.

    Args:
        precision: "float32", "bfloat16" where 16-bit arithmetic is allowed, or "int8".
        device: "auto", "cpu", "cuda" or "cuda:N". With "int8", "auto" is the CPU.

    Raises:
        ConfigError: A device that is not there, or a card for "int8".
    """
    int8 = precision == "int8"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and not int8 else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is not one; use 'auto', 'cpu', 'cuda' or 'cuda:N'.") from error
    if place.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r} is not supported; use 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    if place.type == "cuda":
        cards = torch.cuda.device_count()
        if (place.index or 0) >= cards:
            raise ConfigError(
                f"device {device!r} is not there: this process sees {cards} CUDA cards. Use 'auto'; on a cluster, install a "
                f"torch with CUDA on the machines with GPUs, or encode on CPUs with run.gpus_per_replica=0."
            )
        place = torch.device("cuda", place.index or 0)
    if int8:
        if place.type != "cpu":
            raise ConfigError(
                f"dtype int8 is for CPUs and the device is {device!r}. Use dtype auto, which is bfloat16 on a card, or device cpu."
            )
        return Compute(place, torch.float32, int8=True)
    wide = precision == "float32" or not (cpu_has_bfloat16() if place.type == "cpu" else _card_has_bfloat16(place))
    return Compute(place, torch.float32 if wide else torch.bfloat16)


def cpu_has_bfloat16() -> bool:
    """True where the processor multiplies bfloat16 in hardware; elsewhere it is emulated and slower than float32."""
    named = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    probes = [getattr(torch.cpu, name, None) for name in named]
    return any(probe() for probe in probes if probe is not None)


def _card_has_bfloat16(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)
