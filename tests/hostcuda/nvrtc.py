"""Compile CUDA source for real GPUs with NVRTC, the compiler that CuPy uses; no GPU is needed.

The libraries come from the wheels ``nvidia-cuda-nvrtc-cu12`` and ``nvidia-cuda-nvrtc`` and are
called through ctypes. ptxas, which runs inside them, reports what each kernel uses.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from .compiler import cache_folder, make_once

# What CuPy adds to the options of a RawModule.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")


class NvrtcError(RuntimeError):
    """NVRTC refused the source; the message is its log."""


@dataclass(frozen=True)
class Usage:
    """What a kernel uses on an architecture.

    Attributes
    ----------
    name : str
    arch : int
        90 for sm_90.
    registers : int
        Of a thread.
    spill_stores, spill_loads : int
        Bytes moved because registers did not suffice.
    stack : int
        Bytes of local memory of a thread, for arrays that are not in registers.
    shared : int
        Bytes of static shared memory of a block.
    """

    name: str
    arch: int
    registers: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    stack: int = 0
    shared: int = 0


class Nvrtc:
    """One NVRTC library.

    Attributes
    ----------
    version : tuple of int
        (12, 9) for instance.
    architectures : tuple of int
        What it compiles for.
    """

    def __init__(self, path: Path) -> None:
        # Local symbols: two versions live in one process.
        self._library = ctypes.CDLL(str(path), mode=os.RTLD_LOCAL | os.RTLD_NOW)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        architectures = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", architectures)
        self.architectures = tuple(architectures)

    def __repr__(self) -> str:
        return f"NVRTC {self.version[0]}.{self.version[1]}"

    def compile(self, code: str, file_name: str, arch: int, options: Sequence[str]) -> list[Usage]:
        """Compile for one architecture, with `options` and CuPy's own.

        The answer is kept in the cache, by content.

        Raises
        ------
        NvrtcError
            With the compiler's messages.
        """
        flags = (f"-arch=sm_{arch}", "--ptxas-options=-v", *CUPY_OPTIONS, *options)
        text = "\0".join([Path(__file__).read_text(), repr(self), code, file_name, *flags])
        kept = cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

        def compile_to(path: Path) -> None:
            usages = parse_log(self._compile(code, file_name, flags), arch)
            path.write_text(json.dumps([asdict(usage) for usage in usages]))

        make_once(kept, compile_to)
        return [Usage(**usage) for usage in json.loads(kept.read_text())]

    def _compile(self, code: str, file_name: str, flags: Sequence[str]) -> str:
        """The log of a compilation."""
        with self._program(code, file_name) as program:
            strings = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
            status = self._library.nvrtcCompileProgram(program, len(flags), strings)
            log = self._log(program)
            if status:
                raise NvrtcError(log or self._message(status))
            return log

    @contextmanager
    def _program(self, code: str, file_name: str) -> Iterator[ctypes.c_void_p]:
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            code.encode(),
            file_name.encode(),
            0,
            None,
            None,
        )
        try:
            yield program
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _log(self, program: ctypes.c_void_p) -> str:
        size = ctypes.c_size_t()
        self._call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self._call("nvrtcGetProgramLog", program, log)
        return log.value.decode()

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise NvrtcError(f"{name}: {self._message(status)}")

    def _message(self, status: int) -> str:
        return self._library.nvrtcGetErrorString(status).decode()


@functools.cache
def installed() -> tuple[Nvrtc, ...]:
    """Every NVRTC of an installed wheel, oldest first."""
    paths = {
        path.resolve()
        for folder in sys.path
        for path in Path(folder or ".").glob("nvidia/*/lib/libnvrtc.so.*")
        if ".alt." not in path.name
    }
    return tuple(sorted(map(Nvrtc, paths), key=lambda nvrtc: nvrtc.version))


_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse_log(log: str, arch: int) -> list[Usage]:
    """What ptxas says of each kernel. Functions that are not inlined count with their kernel."""
    found: dict[str, dict[str, int]] = {}
    fields: dict[str, int] = {}
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            fields = found.setdefault(entry[1], {})
        if memory := _MEMORY.search(line):
            for field, value in zip(
                ("stack", "spill_stores", "spill_loads"), memory.groups(), strict=True
            ):
                fields[field] = fields.get(field, 0) + int(value)
        if registers := _REGISTERS.search(line):
            fields["registers"] = int(registers[1])
        if shared := _SHARED.search(line):
            fields["shared"] = int(shared[1])
    return [Usage(name, arch, **fields) for name, fields in found.items()]
