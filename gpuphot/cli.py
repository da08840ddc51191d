"""The command line: ``gpuphot demo``, ``gpuphot measure`` and ``gpuphot info``.

Options become calls of the package's functions here, and errors become one line on stderr.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from . import BackendError, __version__, load_psf, resolve_backend
from .backend import NAMES
from .chain import METHODS, measure_image
from .info import one_line, print_info, print_kernels
from .pipeline import FileReport, measure_file, naming

_DEFAULTS = {name: p.default for name, p in inspect.signature(measure_image).parameters.items()}
_FORMAT = "ecsv"

# Arguments whose options have other names.
_OPTION_NAMES = {
    "group_sources": "no-groups", "keep_negative": "drop-negative", "in_pixels": "pixels",
}  # fmt: skip

_FUNCTIONS: tuple[Callable[..., Any], ...] = (measure_file, measure_image, *METHODS.values())
_ARGUMENTS = set().union(*(inspect.signature(f).parameters for f in _FUNCTIONS))
_ARGUMENTS -= {"image", "obj"}  # They are no options.
_USER_ERRORS = (
    OSError, ValueError, TypeError, ImportError, BackendError, NotImplementedError, MemoryError,
)  # fmt: skip


class CommandError(Exception):
    """What the user can put right, in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; by default those of the process.

    Returns
    -------
    int
        Exit status: 0, or 2 after an error. Usage errors leave through SystemExit with status 2.
    """
    args = vars(_make_parser().parse_args(argv))
    run = args.pop("run")
    try:
        run(**args)
    except CommandError as error:
        _print_error(error)
        return 2
    return 0


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turn the errors of a step that depends on the user's input into a CommandError."""
    try:
        yield
    except _USER_ERRORS as error:
        raise CommandError(_option_first(one_line(error))) from error


def _option_first(message: str) -> str:
    """Call the argument that an error message begins with by the name of its option."""
    name, space, rest = message.partition(" ")
    if name in _ARGUMENTS:
        name = f"--{_OPTION_NAMES.get(name, name).replace('_', '-')}"
    return name + space + rest


def _print_error(error: CommandError) -> None:
    tqdm.write(f"gpuphot: error: {error}", file=sys.stderr)


# The parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gpuphot: error: {message} (see {self.prog} --help)\n")


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gpuphot", description="Photometry of star-field images.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"gpuphot {__version__}")
    parser.set_defaults(run=parser.print_help)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_demo(commands)
    _add_measure(commands)
    _add_info(commands)
    return parser


def _add_command(commands: Any, name: str, run: Any, summary: str, more: str = "") -> Any:
    command = commands.add_parser(
        name, help=summary, description=f"{summary} {more}".strip(), allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    command.set_defaults(run=run)
    return command


def _add_demo(commands: Any) -> None:
    demo = _add_command(
        commands, "demo", _demo,
        "Measure the globular cluster M13, with and without its neighbours, and plot it.",
        "The image comes with astropy.",
    )  # fmt: skip
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("gpuphot-demo"), metavar="DIR",
        help="directory for the table and the pictures, made if need be; the demo replaces its own "
        "files there (default: %(default)s)",
    )  # fmt: skip


def _add_info(commands: Any) -> None:
    info = _add_command(
        commands, "info", _info, "Show versions, backends and the state of the GPU."
    )
    info.add_argument(
        "--compile", action="store_true", default=False,
        help="compile all kernels for the GPU instead, and show what they use there",
    )  # fmt: skip


def _add_measure(commands: Any) -> None:
    measure = _add_command(
        commands, "measure", _measure,
        "Measure the stars of FITS images: detected ones, or those of a catalogue.",
        "The width of the stars and their PSF are taken from the image, gain, saturation and "
        "exposure from its header, unless they are given.",
    )  # fmt: skip
    measure.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE",
        help="FITS image; may be compressed in tiles or by gzip",
    )  # fmt: skip
    measure.add_argument(
        "--method", choices=tuple(METHODS), default=_DEFAULTS["method"],
        help="what to measure: apertures, optimal extraction, apertures of SEP, PSF fits, or "
        "apertures without the light of the neighbours (default: %(default)s)",
    )  # fmt: skip
    _add_output_options(measure.add_argument_group("output"))
    _add_catalog_options(measure.add_argument_group("objects"))
    _add_photometry_options(measure.add_argument_group("photometry"))
    _add_pixel_options(measure.add_argument_group("pixels"))


def _add_output_options(group: Any) -> None:
    group.add_argument(
        "-o", "--output", type=Path, default=Path(), metavar="OUT",
        help="table to write, in the format of its suffix: .ecsv (keeps everything), .csv, .fits, "
        ".vot, .parquet, ...; or a directory, made if need be, for a table named after each image "
        "(default: the current one)",
    )  # fmt: skip
    group.add_argument(
        "--format", default=_FORMAT, metavar="SUFFIX",
        help="of tables in a directory (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--pictures", action="store_true",
        help="draw the field, magnitude errors, a growth curve and what is left without the "
        "neighbours of a star, into PNG files beside the table",
    )  # fmt: skip
    group.add_argument("--overwrite", action="store_true", help="replace files that exist")
    group.add_argument("--verbose", action="store_true", help="print what is done")


def _add_catalog_options(group: Any) -> None:
    group.add_argument(
        "--catalog", type=Path, metavar="CAT",
        help="table with x and y or, through the world coordinates of the image, ra and dec; FITS, "
        "ECSV, CSV, VOTable, Parquet, ... by its suffix (default: detect the objects)",
    )  # fmt: skip
    for name in ("x", "y", "ra", "dec"):
        group.add_argument(f"--{name}-column", metavar="NAME", help=f"column of CAT with {name}")
    group.add_argument(
        "--one-based", action="store_true",
        help="x and y of CAT count from 1, as in FITS; 0 is otherwise the centre of the first "
        "pixel, except in columns like X_IMAGE of SExtractor",
    )  # fmt: skip
    group.add_argument(
        "--threshold", type=float, metavar="SIGMA",
        help=f"of the detection, in units of the noise (default: {_DEFAULTS['threshold']:g})",
    )  # fmt: skip
    group.add_argument(
        "--passes", type=int, metavar="N",
        help="of the detection for PSF fits and deblending: after the first, on the image without "
        f"the stars found before (default: {_DEFAULTS['passes']})",
    )  # fmt: skip


def _add_photometry_options(group: Any) -> None:
    group.add_argument(
        "--aper", type=float, metavar="R",
        help="radius of the aperture in FWHM (default: 1, in optimal extraction 1.5)",
    )  # fmt: skip
    group.add_argument(
        "--bkgann", type=float, nargs=2, metavar=("IN", "OUT"),
        help="radii of an annulus for each object's local background, in FWHM",
    )  # fmt: skip
    group.add_argument(
        "--pixels", action="store_true", dest="in_pixels", help="--aper and --bkgann are in pixels"
    )
    group.add_argument(
        "--fwhm", type=float, metavar="PIXELS",
        help="FWHM of the stars (default: that of bright stars on the image)",
    )  # fmt: skip
    group.add_argument(
        "--psf", type=Path, metavar="FILE",
        help="PSF model, a .psf file of PSFEx (default: made of bright stars on the image)",
    )  # fmt: skip
    group.add_argument(
        "--psf-degree", type=int, metavar="N",
        help="degree in the position of the PSF model that is made (default: 2 from 50 stars on, "
        "else 1)",
    )  # fmt: skip
    group.add_argument(
        "--bkg-order", type=int, choices=(0, 1, 2),
        help="local background: mode, plane or quadratic surface (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--centroid-iter", type=int, metavar="N",
        help="steps of centroiding before the measurement (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--centroid-method", choices=("com", "psf"),
        help="centre of mass, or weighted with the PSF (default: com)",
    )  # fmt: skip
    group.add_argument(
        "--no-groups", action="store_false", dest="group_sources",
        help="fit every object on its own, also in crowds",
    )  # fmt: skip
    group.add_argument(
        "--grouper-radius", type=float, metavar="PIXELS",
        help="in optimal extraction, objects so near each other are fitted together (default: "
        "twice --aper)",
    )  # fmt: skip
    group.add_argument(
        "--sn", type=float, metavar="MIN", help="drop objects below this signal-to-noise ratio"
    )
    group.add_argument(
        "--drop-negative", action="store_false", dest="keep_negative",
        help="drop objects whose flux is not positive",
    )  # fmt: skip
    group.add_argument("--backend", choices=NAMES, help="what computes (see gpuphot info)")


def _add_pixel_options(group: Any) -> None:
    group.add_argument(
        "--ext", metavar="NAME_OR_NUMBER",
        help="extension of the image (default: the only image of the file, SCI, or the primary)",
    )  # fmt: skip
    for name, unit, meaning in (
        ("gain", "E_PER_COUNT", "electrons per count, for the Poisson noise of the objects"),
        ("saturation", "COUNTS", "pixels of at least this value are masked"),
        ("exposure", "SECONDS", "magnitudes are those of the flux per second"),
    ):
        group.add_argument(
            f"--{name}", type=float, metavar=unit,
            help=f"{meaning} (default: from the header; 0 for none)",
        )  # fmt: skip
    group.add_argument(
        "--mask", metavar="FITS",
        help="image that is not zero where a pixel is masked; of this and the others, "
        "file.fits[NAME] tells the extension",
    )  # fmt: skip
    noise = group.add_mutually_exclusive_group()
    noise.add_argument(
        "--err", type=_number_or_path, metavar="NUMBER_OR_FITS",
        help="standard deviation of the pixels (default: estimated)",
    )  # fmt: skip
    noise.add_argument("--weight", metavar="FITS", help="inverse variance of the pixels")
    group.add_argument(
        "--bg", type=_number_or_path, metavar="NUMBER_OR_FITS",
        help="background to subtract (default: estimated)",
    )  # fmt: skip
    group.add_argument(
        "--bg-size", type=int, metavar="PIXELS",
        help=f"size of the background mesh cells (default: {_DEFAULTS['bg_size']})",
    )  # fmt: skip


def _number_or_path(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


# The commands


def _demo(output: Path) -> None:
    from .demo import run_demo  # What draws is not needed by the other commands

    with _user_errors():
        resolve_backend()
    with _directory(output), _user_errors():
        run_demo(output)


def _info(compile: bool) -> None:
    with _user_errors():
        (print_kernels if compile else print_info)()


def _measure(images: list[Path], output: Path, format: str, **options: Any) -> None:
    """Measure one image after the other; those that fail are reported, the others go on."""
    with _user_errors():
        if "psf" in options:
            with naming(options["psf"], "cannot read"):
                options["psf"] = load_psf(options["psf"])
        tables = _tables(images, output, format)
    n_failed = 0
    progress = tqdm(tables.items(), disable=True if len(tables) == 1 else None, unit="image")
    with nullcontext() if output in tables else _directory(output):
        for table, image in progress:
            try:
                report = _measure_one(image, table, options)
            except CommandError as error:
                if len(tables) == 1:
                    raise
                n_failed += 1
                _print_error(error)
            else:
                tqdm.write(_summary(report))
    if n_failed:
        raise CommandError(f"{n_failed} of {len(tables)} images failed")


def _measure_one(image: Path, table: Path, options: dict[str, Any]) -> FileReport:
    """Measure an image; errors name it."""
    try:
        with _user_errors():
            return measure_file(image, table, **options)
    except CommandError as error:
        if str(image) in str(error):
            raise
        raise CommandError(f"{image}: {error}") from error


def _tables(images: list[Path], output: Path, format: str) -> dict[Path, Path]:
    """The image of each table that is to be written."""
    if output.suffix and not output.is_dir():
        if len(images) > 1:
            raise CommandError(f"{output} is no directory, which --output must be for many images")
        return {output: images[0]}
    tables: dict[Path, Path] = {}
    for image in images:
        table = output / f"{_stem(image)}.{format.lstrip('.')}"
        if table in tables:
            raise CommandError(f"{tables[table]} and {image} would both become {table}")
        tables[table] = image
    return tables


def _stem(image: Path) -> str:
    """Name of an image without its suffixes."""
    return re.sub(r"(\.(fits|fit|fts))?(\.(fz|gz|bz2|xz))?$", "", image.name, flags=re.IGNORECASE)


@contextmanager
def _directory(path: Path) -> Iterator[None]:
    """Make a directory and its parents if need be; those that stay empty go again."""
    made: list[Path] = []
    try:
        with _user_errors(), naming(path, "cannot make"):
            made = [directory for directory in (path, *path.parents) if not directory.exists()]
            path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):
            for directory in made:
                directory.rmdir()


def _summary(report: FileReport) -> str:
    lines = [
        f"{report.image}: {report.n_measured} objects measured, {report.n_flagged} flagged: "
        f"{report.table}",
        *report.notes,
        *(str(picture) for picture in report.pictures),
    ]
    return "\n  ".join(lines)


if __name__ == "__main__":
    sys.exit(main())
