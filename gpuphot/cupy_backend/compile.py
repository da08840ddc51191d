"""What the kernels use on the current device: compiled there, one file after the other."""

from __future__ import annotations

import time
from dataclasses import dataclass

import cupy

from . import launch
from .kernels.registry import FILES, KERNELS


@dataclass(frozen=True)
class CompiledKernel:
    """What a kernel uses on the current device.

    Attributes
    ----------
    name : str
    file : str
        The ``.cu`` file that holds it.
    registers : int
        Of a thread.
    max_registers : int
        Registers that the registry allows.
    local_bytes : int
        Local memory of a thread, which is slow; kernels are written to need none.
    shared_bytes : int
        Static shared memory of a block.
    seconds : float
        Time that its whole file took. Next to none if CuPy's cache on disk holds the file.
    """

    name: str
    file: str
    registers: int
    max_registers: int
    local_bytes: int
    shared_bytes: int
    seconds: float


def compile_kernels() -> list[CompiledKernel]:
    """Compile every kernel of the registry for the current device.

    Returns
    -------
    list of CompiledKernel
        In the order of the files.
    """
    return [kernel for file in FILES for kernel in _compile_file(file)]


def _compile_file(file: str) -> list[CompiledKernel]:
    names = [kernel.name for kernel in KERNELS.values() if kernel.file == file]
    start = time.perf_counter()
    module = launch.load(file, cupy.cuda.runtime.getDevice())
    # CuPy compiles a module when the first of its kernels is asked for.
    functions = [module.get_function(name) for name in names]
    seconds = time.perf_counter() - start
    return [
        CompiledKernel(
            name=name,
            file=file,
            registers=function.num_regs,
            max_registers=KERNELS[name].max_registers,
            local_bytes=function.local_size_bytes,
            shared_bytes=function.shared_size_bytes,
            seconds=seconds,
        )
        for name, function in zip(names, functions, strict=True)
    ]
