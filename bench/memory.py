"""Child process of a benchmark: peak memory of gpuphot's calls, request and answer in JSON."""

from __future__ import annotations

import json
import sys
from functools import partial

from . import calls
from .harness import peak_memory


def main() -> None:
    request = json.load(sys.stdin)
    workload = calls.built(request["workload"], request["fluxes_given"])
    peaks = {}
    for key, row in request["rows"].items():
        function = getattr(calls, row["function"])
        peaks[key] = peak_memory(partial(function, workload, request["backend"], **row["call"]))
    json.dump(peaks, sys.stdout)


if __name__ == "__main__":
    main()
