"""Loading and launching of kernels, and the way of arrays to a device and back.

Everything runs on the current device and stream: the caller's.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from .kernels.registry import KERNELS, OPTIONS, source


def launch(name: str, n_blocks: int, arguments: tuple[Any, ...], shared: int = 0) -> None:
    """Launch a kernel of the registry; nothing happens for no blocks.

    Parameters
    ----------
    name : str
    n_blocks : int
    arguments : tuple
        C-contiguous device arrays and NumPy scalars of the kernel's own types.
    shared : int, default 0
        Bytes of dynamic shared memory.
    """
    if n_blocks:
        kernel = _function(name, cupy.cuda.runtime.getDevice())
        kernel((n_blocks,), (KERNELS[name].block,), arguments, shared_mem=shared)


@functools.cache
def _function(name: str, device: int) -> Any:
    return load(KERNELS[name].file, device).get_function(name)


@functools.cache
def load(file: str, device: int) -> Any:
    """The module of a file on a device, compiled when it is first used there."""
    return cupy.RawModule(code=source(file), options=OPTIONS)


def blocks(n_items: int, items_per_block: int) -> int:
    """Blocks that hold so many items."""
    return -(-n_items // items_per_block)


MAX_WORKSPACE = 1 << 28
"""Bytes of what is made at once, and used up before more is made."""


def workspace_items(item_bytes: int) -> int:
    """How many items of so many bytes the workspace holds, at least one.

    An eighth of what is free leaves room for whoever shares the device.
    """
    workspace = min(MAX_WORKSPACE, cupy.cuda.Device().mem_info[0] // 8)
    return max(1, workspace // max(1, item_bytes))


def scratch(kernel: str, n_blocks: int, n_items: int, dtype: Any) -> tuple[Any, int, int]:
    """Memory for the blocks of a kernel, of so many items each: shared if it fits, else global.

    Parameters
    ----------
    kernel : str
        Its name in the registry.
    n_blocks : int
        Blocks that there are to launch.
    n_items : int
    dtype : dtype of the items

    Returns
    -------
    workspace : array
        Empty if shared memory holds what a block needs.
    n_at_once : int
        Blocks that may be launched at the same time.
    shared : int
        Bytes of shared memory; 0 with a workspace.
    """
    n_bytes = np.dtype(dtype).itemsize * n_items
    if n_bytes <= KERNELS[kernel].max_shared:
        return cupy.empty(0, dtype), max(1, n_blocks), n_bytes
    n_at_once = max(1, min(n_blocks, workspace_items(n_bytes)))
    return cupy.empty(n_at_once * n_items, dtype), n_at_once, 0


def as_bytes(values: Any) -> Any:
    """A boolean array as the bytes that kernels take."""
    return values.view(cupy.uint8)


def to_device(values: Any) -> Any:
    """An array on the current device; one that lives on a device stays where it is."""
    if isinstance(values, np.ndarray) and not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    return cupy.asarray(values)


def to_host(values: Any) -> NDArray:
    """An array on the host. Waits for everything that it depends on."""
    return cupy.asnumpy(values)


def device_of(*arrays: Any) -> AbstractContextManager[Any]:
    """Make the device current that owns the first device array; else leave the current one."""
    for array in arrays:
        if hasattr(array, "__cuda_array_interface__"):
            return cupy.asarray(array).device
    return cupy.cuda.Device()


def plane(values: Any, shape: tuple[int, ...]) -> Any:
    """A float64 plane of the image's shape."""
    return cupy.ascontiguousarray(
        cupy.broadcast_to(to_device(values).astype(cupy.float64, copy=False), shape)
    )
