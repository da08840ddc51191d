"""What is known of the kernels without a GPU: `python -m bench.static`.

Registers and shared memory come from the compiler, occupancy follows from them, bytes and
operations are counted by hand in `traffic`. None of this is a measurement.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from gpuphot.cupy_backend.kernels.registry import FILES, KERNELS, OPTIONS, Kernel, source
from tests.hostcuda import nvrtc

from . import harness
from .traffic import WORK, Case, Work

ARCHITECTURE = 90
LEAST_OCCUPANCY = 0.25
REASONS: dict[str, str] = {}
"""By kernel: why its occupancy may be less."""


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor of sm_90 has, and in which portions it hands that out."""

    max_warps: int = 64
    max_blocks: int = 32
    registers: int = 65536
    registers_step: int = 256  # of a warp
    warps_step: int = 4  # each of four partitions has a quarter of the registers
    shared: int = 228 * 1024
    shared_reserved: int = 1024  # of each block
    shared_step: int = 128


SM_90 = Multiprocessor()


def occupancy(registers: int, shared: int, block: int, processor: Multiprocessor = SM_90) -> float:
    """Share of a multiprocessor's warps that can be resident at once.

    Parameters
    ----------
    registers : int
        Of a thread.
    shared : int
        Bytes of a block, static and dynamic.
    block : int
        Threads of a block.
    processor : Multiprocessor
    """
    warps = -(-block // 32)
    by_warps = processor.max_warps // warps
    of_warp = _rounded(32 * registers, processor.registers_step)
    resident = processor.registers // of_warp
    by_registers = (resident - resident % processor.warps_step) // warps
    of_block = _rounded(shared + processor.shared_reserved, processor.shared_step)
    by_shared = processor.shared // of_block
    n_blocks = min(processor.max_blocks, by_warps, by_registers, by_shared)
    return n_blocks * warps / processor.max_warps


def _rounded(value: int, step: int) -> int:
    return -(-value // step) * step


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.static", description=__doc__)
    parser.parse_args()
    print(report(Case()))


def report(case: Case) -> str:
    """The table and its notes, in Markdown."""
    compiler = _compiler()
    of_kernel = {
        usage.name: usage
        for file in FILES
        for usage in compiler.compile(source(file), file, ARCHITECTURE, OPTIONS)
    }
    usages = [of_kernel[name] for name in KERNELS]
    rows = [_row(usage, KERNELS[usage.name], _work(usage.name, case)) for usage in usages]
    head = [
        "kernel", "per", "registers", "local B", "static B", "dynamic B", "up to B", "occupancy",
        "least", "bytes", "cached", "operations", "ops/byte",
    ]  # fmt: skip
    parts = [
        f"`python -m bench.static`: {compiler!r}, sm_{ARCHITECTURE}, options {' '.join(OPTIONS)}.",
        harness.markdown_table(head, rows, n_text=2),
        *_low_occupancy(usages),
    ]
    return "\n\n".join(parts)


def _compiler() -> nvrtc.Nvrtc:
    found = [each for each in nvrtc.installed() if ARCHITECTURE in each.architectures]
    if not found:
        raise SystemExit('No NVRTC is installed: pip install "nvidia-cuda-nvrtc>=13,<14".')
    return found[-1]


def _work(name: str, case: Case) -> Work | None:
    return WORK[name](case) if name in WORK else None


def _row(usage: nvrtc.Usage, kernel: Kernel, work: Work | None) -> list[str]:
    dynamic = work.shared if work else 0
    shares = [
        occupancy(usage.registers, usage.shared + bytes_, kernel.block)
        for bytes_ in (dynamic, kernel.max_shared)
    ]
    resources = [
        usage.registers, usage.stack + usage.spill_stores, usage.shared, dynamic, kernel.max_shared
    ]  # fmt: skip
    return [
        usage.name,
        work.unit if work else "",
        *(str(value) for value in resources),
        *(f"{share:.0%}" for share in shares),
        *_counted(work),
    ]


def _counted(work: Work | None) -> list[str]:
    if work is None:
        return ["not counted", "", "", ""]
    ratio = work.operations / work.bytes_per_unit
    counts = work.bytes_per_unit, work.cached_bytes, work.operations, ratio
    return [_figure(value) for value in counts]


def _figure(value: float) -> str:
    """Three digits; more would be beyond the accuracy of what is counted by hand."""
    return f"{float(format(value, '.3g')):,g}"


def _low_occupancy(usages: list[nvrtc.Usage]) -> list[str]:
    low = []
    for usage in usages:
        kernel = KERNELS[usage.name]
        share = occupancy(usage.registers, usage.shared + kernel.max_shared, kernel.block)
        if share < LEAST_OCCUPANCY:
            reason = REASONS.get(usage.name, "no reason is on record.")
            low.append(f"- {usage.name} may have as little as {share:.0%}: {reason}")
    if not low:
        return [f"No kernel has an occupancy below {LEAST_OCCUPANCY:.0%}, whatever its sample."]
    return [f"Below {LEAST_OCCUPANCY:.0%}:", "\n".join(low)]


if __name__ == "__main__":
    main()
