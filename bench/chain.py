"""Where the time of `gpuphot measure` goes, from file to table: `python -m bench.chain --help`."""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from gpuphot import chain, images, measure_file, pipeline, tables

from . import harness, workloads

STEPS = {
    "reading the image": images.read_image,
    "reading the catalogue": tables.read_catalog,
    "detection": chain.detect_objects,
    "FWHM of the stars": chain.estimate_fwhm,
    "PSF model": chain.create_psf_model,
    "apertures, background, noise map": chain.measure_objects,
    "PSF fits": chain.measure_objects_sep,
    "deblended apertures": chain.measure_aperture_deblended,
    "writing the table": tables.write_table,
    "pictures": pipeline._draw,
}
HEADER = fits.Header(
    {
        "GAIN": 2.0, "EXPTIME": 60.0, "BUNIT": "adu",
        "CTYPE1": "RA---TAN", "CRPIX1": 2048.5, "CRVAL1": 250.4, "CDELT1": -1e-4,
        "CTYPE2": "DEC--TAN", "CRPIX2": 2048.5, "CRVAL2": 36.5, "CDELT2": 1e-4,
    }
)  # fmt: skip


def main() -> None:
    arguments = _parser().parse_args()
    field = workloads.build(arguments.workload)
    results = [profile(field, method) for method in arguments.methods]
    report = {
        "benchmark": "chain", **harness.circumstances("numpy"), "workload": arguments.workload,
        "results": results,
    }  # fmt: skip
    print(as_markdown(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def profile(field: workloads.Workload, method: str) -> dict[str, Any]:
    """Wall seconds of each step of one image and its catalogue, to a table and all pictures.

    The FWHM and the PSF are learnt from detected stars.
    """
    with tempfile.TemporaryDirectory() as directory:
        path, catalog, table = (Path(directory) / f"{name}.fits" for name in ("image", "in", "out"))
        fits.writeto(path, field.image.astype(np.float32), HEADER)
        field.table.write(catalog)
        profiler = cProfile.Profile()
        report = profiler.runcall(
            measure_file, path, table, catalog=catalog, method=method, pictures=True
        )
    seconds = cumulative(pstats.Stats(profiler))
    steps = {name: seconds(function) for name, function in STEPS.items()}
    total = seconds(measure_file)
    return {"method": method, "objects": report.n_measured, "total_s": total, "steps_s": steps}


def cumulative(stats: pstats.Stats) -> Any:
    """Of a function, the seconds that it and what it calls took."""
    times = {key: row[3] for key, row in stats.stats.items()}

    def seconds(function: Any) -> float:
        code = function.__code__
        return times.get((code.co_filename, code.co_firstlineno, code.co_name), 0.0)

    return seconds


def as_markdown(results: list[dict[str, Any]]) -> str:
    names = [result["method"] for result in results]
    lines = [f"| seconds | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    for step in STEPS:
        lines.append(_row(step, [result["steps_s"][step] for result in results]))
    lines.append(_row("all", [result["total_s"] for result in results]))
    counts = " | ".join(f"{result['objects']:,}" for result in results)
    return "\n".join([*lines, f"| objects | {counts} |"])


def _row(name: str, seconds: list[float]) -> str:
    return f"| {name} | {' | '.join(f'{value:.2f}' for value in seconds)} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.chain", description=__doc__)
    parser.add_argument("--workload", choices=tuple(workloads.SIZES), default="L")
    parser.add_argument(
        "--methods", nargs="+", choices=tuple(chain.METHODS), default=["aperture", "deblended"]
    )
    parser.add_argument("--json", type=Path, help="file to write the results to")
    return parser


if __name__ == "__main__":
    main()
