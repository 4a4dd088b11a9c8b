"""Copies between the host and a GPU during which neither waits for the other.

They need pinned memory of the host, which the GPU reads and writes by itself. For a copy from or to other memory the host
waits until the GPU has done all work before it, and the GPU then waits for its next kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def to_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Returns an array as a tensor on a device; on a CPU it is the same memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Departure:
    """A copy of a tensor that is on its way from a GPU to the host.

    Args:
        source: The tensor; its memory must not be reused before the copy has ended.
        target: The copy, in pinned memory.
        ended: Marks the end of the copy.
    """

    def __init__(self, source: torch.Tensor, target: torch.Tensor, ended: Any) -> None:
        self._source, self._target, self._ended = source, target, ended

    def has_ended(self) -> bool:
        """Returns True if `array` would not wait."""
        return bool(self._ended.query())

    def array(self) -> npt.NDArray[Any]:
        """Waits for the end of the copy and returns it."""
        self._ended.synchronize()
        array: npt.NDArray[Any] = self._target.numpy()
        return array


class Departures:
    """Copies tensors of a GPU to the host by a stream of its own: beside the kernels that are launched later."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, source: torch.Tensor) -> Departure:
        """Starts the copy of a tensor as soon as it is computed; the host does not wait."""
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            return Departure(source, target, self._stream.record_event())
