"""Turn CUDA source into a shared library for the CPU, in one of four variants, and keep it.

g++ includes ``cuda_on_host.h`` in front of the source and links it to the machinery in
``emulator/``. The cache goes by content: of the source, the machinery, the flags, the compiler.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
EMULATOR = HERE / "emulator"

_COMMON_FLAGS = (
    "-gdwarf-4",  # addr2line misreads the file names of version 5
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-gnu-unique",  # a symbol shared by all loaded libraries would mix their states
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Werror=uninitialized",
    "-Werror=return-type",
    "-Wno-unknown-pragmas",
)


@dataclass(frozen=True)
class Variant:
    """How kernels and the machinery are compiled."""

    kernel: tuple[str, ...]
    machinery: tuple[str, ...] = ()
    link: tuple[str, ...] = ()


_SANITIZERS = (
    "-O1",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-fsanitize-sections=hostcuda_shared",  # guards between arrays in static shared memory
)

VARIANTS = {
    "plain": Variant(("-O2", "-ffp-contract=off"), ("-O2",)),
    "sanitized": Variant(
        (*_SANITIZERS, "-ffp-contract=off"), _SANITIZERS, ("-fsanitize=address,undefined",)
    ),
    # Hooks at every access to memory; emulator/races.cpp has them instead of libtsan.
    "race": Variant(
        (
            "-O1",
            "-fsanitize=thread",
            "--param=tsan-instrument-func-entry-exit=0",
            "-ffp-contract=off",
        ),
        ("-O2", "-DHOSTCUDA_RACES"),
    ),
    "contracted": Variant(("-O2", "-mfma", "-ffp-contract=fast"), ("-O2",)),
}


class CompilationError(RuntimeError):
    """g++ refused the source; the message is g++'s."""


_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\(\s*(\d+)[^)]*\)\s*)?(\w+)\s*\('
)
_DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;")


def find_kernels(code: str) -> dict[str, int]:
    """Names of the kernels in CUDA source, and the most threads that a block of each may have."""
    return {name: int(bound or 1024) for bound, name in _KERNEL.findall(code)}


def has_fused_multiply_add() -> bool:
    """Whether this CPU can run the contracted variant."""
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and re.search(r"^flags\s*:.*\bfma\b", cpu.read_text(), re.M) is not None


def cache_folder() -> Path:
    """Where libraries are kept: ``GPUPHOT_HOSTCUDA_CACHE``, or a folder of the user's own."""
    given = os.environ.get("GPUPHOT_HOSTCUDA_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(given) if given else Path(base) / "gpuphot-hostcuda"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home
        folder = Path(tempfile.gettempdir()) / f"gpuphot-hostcuda-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def build(code: str, names: Sequence[str], options: Sequence[str], variant: Variant) -> Path:
    """The shared library for CUDA source."""
    # A pointer to the block's dynamic shared memory, on the same line, so that lines still count.
    code = _DYNAMIC_SHARED.sub(r"\1* const \2 = hostcuda::dynamic_shared<\1>();", code)
    if "extern __shared__" in code:
        raise CompilationError("write extern __shared__ type name[]; on one line, without alignas")
    exports = "\n".join(f"HOSTCUDA_EXPORT({name})" for name in names)
    source = f"{code}\n{exports}\n"
    flags = (*_standard_and_definitions(options), *_COMMON_FLAGS, *variant.kernel)
    key = _key(source, *flags, *variant.machinery, *variant.link)
    return make_once(
        cache_folder() / f"{key}.so", lambda library: _build(library, source, flags, variant)
    )


def _build(library: Path, source: str, flags: Sequence[str], variant: Variant) -> None:
    machinery = [
        _object(path, (*_COMMON_FLAGS, "-std=gnu++20", *variant.machinery))
        for path in sorted(EMULATOR.glob("*.cpp"))
        if path.stem != "races" or "-DHOSTCUDA_RACES" in variant.machinery
    ]
    with tempfile.TemporaryDirectory() as folder:
        kernel = Path(folder) / "kernel.o"
        command = ["g++", "-x", "c++", *flags, f"-I{HERE}", "-include", "cuda_on_host.h"]
        _run([*command, "-c", "-", "-o", str(kernel)], source)
        # Without -fsanitize=thread: a race build has hooks of its own, not that library's.
        link = ["g++", "-shared", "-Wl,-Bsymbolic", *variant.link]
        _run([*link, str(kernel), *map(str, machinery), "-o", str(library)])


def _object(path: Path, flags: Sequence[str]) -> Path:
    """A file of the machinery, compiled once for all kernels of a variant."""
    return make_once(
        cache_folder() / f"{_key(path.name, *flags)}.o",
        lambda result: _run(["g++", *flags, "-c", str(path), "-o", str(result)]),
    )


def _standard_and_definitions(options: Sequence[str]) -> list[str]:
    """What of NVRTC's options concerns g++. Contraction is the variant's affair."""
    flags = [option for option in options if option.startswith("-D")]
    for option in options:
        if option.lstrip("-").startswith("std="):
            flags.append(option.replace("--", "-").replace("c++", "gnu++"))
    return flags


@functools.cache
def _machinery_text() -> str:
    """Everything beside the kernel that decides what a library is."""
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    paths = [HERE / "cuda_on_host.h", *sorted(EMULATOR.iterdir())]
    return "\0".join([compiler.stdout, *(path.read_text() for path in paths)])


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join([_machinery_text(), *parts]).encode()).hexdigest()[:24]


def make_once(path: Path, make: Callable[[Path], None]) -> Path:
    """A file of the cache; if there is none, one process makes it and the others wait.

    `make` writes to another name: the file appears under its own when it is complete.
    """
    if path.exists():
        return path
    import fcntl  # Windows has none, and nothing to make

    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            part = path.with_suffix(".part")
            make(part)
            part.replace(path)
    return path


def _run(command: Sequence[str], text: str | None = None) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilationError(done.stderr[-8000:])


def sanitizer_environment() -> dict[str, str]:
    """Environment of a process that may load sanitized libraries: their runtime comes first."""
    libraries = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python never frees everything
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
