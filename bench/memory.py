"""Child process of a benchmark: peak memory of gpuphot's calls, request and answer in JSON."""

from __future__ import annotations

import json
import sys
from functools import partial

import gpuphot

from .harness import peak_memory
from .workloads import build


def main() -> None:
    request = json.load(sys.stdin)
    workload = build(request["workload"])
    peaks = {}
    for key, row in request["rows"].items():
        call = partial(
            getattr(gpuphot, row["function"]),
            workload.table,
            workload.image,
            **workload.arguments(**row["call"]),
            backend=request["backend"],
        )
        peaks[key] = peak_memory(call)
    json.dump(peaks, sys.stdout)


if __name__ == "__main__":
    main()
