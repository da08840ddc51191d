"""Errors of deblended apertures by the pairs' separation: `python -m bench.crowding --help`.

Fields, truth and measurement are those of the tests, at positions known to 0.3 pixels, with
neighbours that are as bright or brighter. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests import crowding

from . import harness

CONTRASTS = (0, 2, 5)
WIDTHS = (1.0, 1.03)
SEEDS = ("psf", "aperture")


def main() -> None:
    arguments = _parser().parse_args()
    report = {"benchmark": "crowding", **harness.circumstances("numpy"), "results": measure()}
    print(as_markdown(report["results"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.png:
        draw(report["results"], arguments.png)


def measure() -> list[dict[str, Any]]:
    """Medians of the errors in per cent, with their own error, and the pulls' scatter."""
    results = []
    for contrast in CONTRASTS:
        for width in WIDTHS:
            for seeds in SEEDS:
                measured = crowding.measured_pairs(contrast, width=width, seeds=seeds)
                for separation in crowding.SEPARATIONS:
                    rows = crowding.targets(measured, contrast, separation)
                    rows &= np.isfinite(measured["flux"])  # NaN if the fit has no flux
                    bias, bias_error = crowding.error(measured, rows)
                    results.append(
                        {
                            "magnitudes": contrast,
                            "psf_width": width,
                            "seeds": seeds,
                            "separation_fwhm": separation,
                            "stars": int(rows.sum()),
                            "bias_percent": bias,
                            "bias_error_percent": bias_error,
                            "scatter_percent": bias_error * np.sqrt(rows.sum() / (np.pi / 2)),
                            "pulls": crowding.pulls(measured, rows),
                            "aperture_bias_percent": crowding.error(measured, rows, "flux_ap_raw")[
                                0
                            ],
                        }
                    )
    return results


def as_markdown(results: list[dict[str, Any]]) -> str:
    head = ["seeds", "neighbour", "PSF", "separation", "bias, %", "pulls", "plain aperture, %"]
    rows = [
        [
            each["seeds"],
            f"{each['magnitudes']} mag brighter",
            f"{each['psf_width']:g}",
            f"{each['separation_fwhm']:g} FWHM",
            f"{each['bias_percent']:.2f} +- {each['bias_error_percent']:.2f}",
            f"{each['pulls']:.2f}",
            f"{each['aperture_bias_percent']:.1f}",
        ]
        for each in results
    ]
    return harness.markdown_table(head, rows, n_text=4)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Absolute errors, a panel for each contrast."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, contrast in zip(figure.subplots(1, 3, sharey=True), CONTRASTS, strict=True):
        for (width, seeds), style in {
            (1.03, "aperture"): "C1s:", (1.0, "aperture"): "C1s-",
            (1.03, "psf"): "C0o:", (1.0, "psf"): "C0o-",
        }.items():  # fmt: skip
            line = [
                each
                for each in results
                if (each["magnitudes"], each["psf_width"], each["seeds"])
                == (contrast, width, seeds)
            ]
            separation = [each["separation_fwhm"] for each in line]
            axes.errorbar(
                separation,
                [abs(each["bias_percent"]) for each in line],
                [each["bias_error_percent"] for each in line],
                fmt=style,
                markersize=4,
                label=f"{seeds} seeds, PSF {'exact' if width == 1 else '3 % too wide'}",
            )
        plain = [each["aperture_bias_percent"] for each in line]
        axes.plot(separation, plain, "k^--", markersize=4, label="plain aperture")
        axes.axhline(2 if contrast == 5 else 0.5, color="0.7", zorder=0)
        axes.set(
            yscale="log",
            ylim=(0.02, 8e3),
            xlabel="separation in FWHM",
            title=f"neighbour {contrast} mag brighter" if contrast else "equal stars",
        )
    figure.axes[0].set_ylabel("|median error|, %")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=80)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.crowding", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw a picture")
    return parser


if __name__ == "__main__":
    main()
