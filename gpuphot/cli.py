"""The command line: ``gpuphot demo``, ``gpuphot measure`` and ``gpuphot info``.

Options become calls of the package's functions here, and errors become one line on stderr.
Reading and writing is in `files`, detection in `detect`, what the demo does in `demo`.
"""

from __future__ import annotations

import argparse
import inspect
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from gpuphot import BackendError, __version__, files, measure_objects, resolve_backend
from gpuphot.backend import ENVIRONMENT_VARIABLE, NAMES
from gpuphot.cupy_backend import probe
from gpuphot.detect import detect_objects

if TYPE_CHECKING:
    from gpuphot.cupy_backend.compile import CompiledKernel

_DEFAULTS = {name: p.default for name, p in inspect.signature(measure_objects).parameters.items()}
_THRESHOLD = inspect.signature(detect_objects).parameters["threshold"].default

# Arguments of measure_objects that the options set as they are.
_PASSED_ON = (
    "aper", "bkgann", "bkg_order", "fwhm", "gain", "bg_size", "sn", "centroid_iter",
    "centroid_method", "psf", "optimal", "group_sources", "grouper_radius", "keep_negative",
    "verbose", "backend",
)  # fmt: skip

_Errors = tuple[type[Exception], ...]
_USER_ERRORS: _Errors = (
    OSError, ValueError, TypeError, ImportError, BackendError, NotImplementedError,
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
        Exit status: 0, or 1 after an error. Usage errors leave through SystemExit with status 2.
    """
    args = _make_parser().parse_args(argv)
    try:
        args.run(args)
    except CommandError as error:
        print(f"gpuphot: error: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _user_errors(doing: str = "", expected: _Errors = _USER_ERRORS) -> Iterator[None]:
    """Turn the errors of a step that depends on the user's input into a CommandError."""
    try:
        yield
    except expected as error:
        raise CommandError(doing + _in_one_line(error)) from error


def _in_one_line(error: Exception) -> str:
    """The message without line breaks, and without the path: the steps name their files."""
    reason = error.strerror if isinstance(error, OSError) else None
    return " ".join((reason or str(error) or type(error).__name__).split())


# The parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gpuphot: error: {message} (see {self.prog} --help)\n")


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gpuphot", description="Photometry of star-field images.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"gpuphot {__version__}")
    parser.set_defaults(run=lambda args: parser.print_help())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_demo(commands)
    _add_measure(commands)
    _add_info(commands)
    return parser


def _add_command(commands: Any, name: str, run: Any, summary: str, more: str = "") -> Any:
    command = commands.add_parser(
        name, help=summary, description=f"{summary} {more}".strip(), allow_abbrev=False
    )
    command.set_defaults(run=run, parser=command)
    return command


def _add_demo(commands: Any) -> None:
    demo = _add_command(
        commands, "demo", _run_demo, "Measure an image that comes with astropy, and plot it."
    )
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("gpuphot-demo"), metavar="DIR",
        help="directory for the table and the plots, made if need be; the demo replaces its own "
        "files there (default: %(default)s)",
    )  # fmt: skip


def _add_info(commands: Any) -> None:
    info = _add_command(
        commands, "info", _run_info, "Show versions, backends and the state of the GPU."
    )
    info.add_argument(
        "--compile", action="store_true",
        help="compile all kernels for the GPU instead, and show what they use there",
    )  # fmt: skip


def _add_measure(commands: Any) -> None:
    measure = _add_command(
        commands, "measure", _run_measure,
        "Measure the objects of a catalogue, or those that are detected, on a FITS image.",
        "The options are the arguments of gpuphot.measure_objects. Tables may be in any format "
        "that astropy knows.",
    )  # fmt: skip
    _add_files(measure)
    _add_catalog_options(measure.add_argument_group("positions"))
    _add_photometry_options(measure.add_argument_group("photometry"))
    _add_pixel_options(measure.add_argument_group("background, noise and mask"))
    measure.set_defaults(**{name: _DEFAULTS[name] for name in _PASSED_ON})


def _add_files(measure: Any) -> None:
    measure.add_argument("image", type=Path, metavar="IMAGE", help="FITS image")
    measure.add_argument(
        "--hdu", metavar="NAME_OR_NUMBER",
        help="HDU of the image (default: the first that holds a 2-D image)",
    )  # fmt: skip
    measure.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT",
        help="table to write, in the format of its suffix: .ecsv (keeps everything), .csv, .fits, "
        ".vot, .hdf5, .txt, ...",
    )  # fmt: skip
    measure.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    measure.add_argument("--backend", choices=NAMES, help="what computes (see gpuphot info)")
    measure.add_argument("--verbose", action="store_true", help="print what is done")


def _add_catalog_options(group: Any) -> None:
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--catalog", type=Path, metavar="CAT", help="table of positions")
    source.add_argument(
        "--detect", action="store_true", help="detect the objects on the image with SEP"
    )
    group.add_argument(
        "--threshold", type=float, metavar="SIGMA",
        help=f"with --detect: threshold in units of the noise (default: {_THRESHOLD:g})",
    )  # fmt: skip
    for name in ("x", "y"):
        group.add_argument(
            f"--{name}-column", metavar="NAME",
            help=f"with --catalog: column of the {name} position, renamed to {name} "
            f"(default: {name})",
        )  # fmt: skip
    group.add_argument(
        "--one-based", action="store_true",
        help="with --catalog: the centre of the first pixel is (1, 1), as in FITS and in the "
        "X_IMAGE and Y_IMAGE of SExtractor; 1 is subtracted, for here it is (0, 0)",
    )  # fmt: skip


def _add_photometry_options(group: Any) -> None:
    group.add_argument(
        "--aper", type=float, metavar="R",
        help="radius of the aperture in pixels, or in units of --fwhm (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--fwhm", type=float, metavar="PIXELS",
        help="FWHM of the stars, then the unit of --aper and --bkgann",
    )  # fmt: skip
    group.add_argument(
        "--centroid-iter", type=int, metavar="N",
        help="steps of centroiding before the measurement (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--centroid-method", choices=("com", "psf"),
        help="centre of mass, or weighted with --psf or a Gaussian of --fwhm (default: "
        "%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--optimal", action="store_true",
        help="fit --psf or a Gaussian of --fwhm to the pixels up to --aper instead of summing them",
    )  # fmt: skip
    group.add_argument("--psf", type=Path, metavar="FILE", help="PSF model, a .psf file of PSFEx")
    group.add_argument(
        "--no-groups", action="store_false", dest="group_sources",
        help="with --optimal: fit every object on its own, also in crowds",
    )  # fmt: skip
    group.add_argument(
        "--grouper-radius", type=float, metavar="PIXELS",
        help="with --optimal: objects so near each other are fitted together (default: twice "
        "--aper)",
    )  # fmt: skip
    group.add_argument(
        "--gain", type=float, metavar="E_PER_COUNT",
        help="electrons per count, for the Poisson noise of the objects (default: without it)",
    )  # fmt: skip
    group.add_argument(
        "--sn", type=float, metavar="MIN", help="drop objects below this signal-to-noise ratio"
    )
    group.add_argument(
        "--drop-negative", action="store_false", dest="keep_negative",
        help="drop objects whose flux is not positive",
    )  # fmt: skip


def _add_pixel_options(group: Any) -> None:
    group.add_argument(
        "--bkgann", type=float, nargs=2, metavar=("IN", "OUT"),
        help="radii of an annulus to measure each object's local background in",
    )  # fmt: skip
    group.add_argument(
        "--bkg-order", type=int, choices=(0, 1, 2),
        help="local background: mode, plane or quadratic surface (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--bg-size", type=int, metavar="PIXELS",
        help="size of the background mesh cells, those of --detect too (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--bg", metavar="NUMBER_OR_FITS", help="background to subtract instead of an estimated one"
    )
    group.add_argument("--err", metavar="NUMBER_OR_FITS", help="standard deviation of the pixels")
    group.add_argument(
        "--mask", type=Path, metavar="FITS", help="image that is not zero where a pixel is masked"
    )


# The commands


def _run_demo(args: argparse.Namespace) -> None:
    from gpuphot.demo import run_demo  # What draws is not needed by the other commands

    with _user_errors():
        resolve_backend()
    with _user_errors(f"cannot make {args.output}: "):
        args.output.mkdir(parents=True, exist_ok=True)
    with _user_errors(expected=(OSError, ImportError)):
        run_demo(args.output)


def _run_measure(args: argparse.Namespace) -> None:
    _refuse_options_without_effect(args)
    with _user_errors(f"cannot write {args.output}: "):
        files.check_output(args.output, args.overwrite)
    image = _read_image(args.image, args.hdu)
    mask = None if args.mask is None else _read_image(args.mask)
    bg, err = _read_plane(args.bg), _read_plane(args.err)
    objects = _find_objects(args, image, mask)
    options = {name: getattr(args, name) for name in _PASSED_ON}
    with _naming_options():
        result: Any = measure_objects(objects, image, mask=mask, bg=bg, err=err, **options)
    with _user_errors(f"cannot write {args.output}: "):
        files.write_table(result, args.output)
    n_dropped = len(objects) - len(result)
    print(
        f"{len(result)} objects measured, {np.count_nonzero(result['flags'])} flagged"
        f"{f', {n_dropped} dropped' if n_dropped else ''}: {args.output}"
    )


def _refuse_options_without_effect(args: argparse.Namespace) -> None:
    if args.detect and (args.x_column or args.y_column or args.one_based):
        args.parser.error("--x-column, --y-column and --one-based go with --catalog only")
    if args.catalog and args.threshold is not None:
        args.parser.error("--threshold goes with --detect only")


def _read_image(path: Path, hdu: str | None = None) -> NDArray:
    with _user_errors(f"cannot read {path}: "):
        return files.read_image(path, hdu)


def _read_plane(text: str | None) -> NDArray | float | None:
    """A number or the image of a file."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return _read_image(Path(text))


def _find_objects(args: argparse.Namespace, image: NDArray, mask: NDArray | None) -> Table:
    if args.catalog:
        with _user_errors(f"cannot use {args.catalog}: "):
            return files.read_catalog(
                args.catalog, args.x_column or "x", args.y_column or "y", args.one_based
            )
    threshold = _THRESHOLD if args.threshold is None else args.threshold
    with _naming_options():
        return detect_objects(image, mask, threshold, args.bg_size)


@contextmanager
def _naming_options() -> Iterator[None]:
    """Call the argument that an error message begins with by the name of its option."""
    try:
        with _user_errors():
            yield
    except CommandError as error:
        name, space, rest = str(error).partition(" ")
        if name in (*_PASSED_ON, "bg", "err", "mask", "threshold"):
            name = f"--{name.replace('_', '-')}"
        raise CommandError(name + space + rest) from error


def _run_info(args: argparse.Namespace) -> None:
    if args.compile:
        _compile_kernels()
        return
    gpu = _probe_gpu()
    on_gpu = f"usable, on {gpu.device}" if gpu.problem is None else f"not usable. {gpu.problem}"
    rows = [
        ("gpuphot", __version__),
        ("Python", platform.python_version()),
        ("platform", platform.platform()),
        ("numpy", _version("numpy")),
        ("scipy", _version("scipy")),
        ("astropy", _version("astropy")),
        ("sep-x", _version("sep-x")),
        ("cupy", _version("cupy", "cupy-cuda13x", "cupy-cuda12x")),
        ("", ""),
        ("numpy backend", f"usable, on {resolve_backend('numpy').device}"),
        ("cupy backend", on_gpu),
        (ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE) or "not set"),
        ("in use", _backend_in_use()),
    ]
    for name, value in rows:
        print(f"{name:<16} {value}".rstrip())


def _version(*distributions: str) -> str:
    """Version of the first of some distributions that is installed."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


def _probe_gpu() -> probe.Gpu:
    try:
        return probe.find_gpu()
    except Exception as error:  # A broken driver may raise anything, and info is to say so
        return probe.Gpu(None, f"It cannot be probed: {_in_one_line(error)}")


def _backend_in_use() -> str:
    try:
        return resolve_backend().name
    except (BackendError, ValueError) as error:
        return f"none: {_in_one_line(error)}"


def _compile_kernels() -> None:
    """Compile all kernels for the GPU and print what they use."""
    gpu = _probe_gpu()
    if gpu.problem is not None:
        raise CommandError(gpu.problem)
    from gpuphot.cupy_backend.compile import compile_kernels  # Needs CuPy, which may be missing

    try:
        kernels = compile_kernels()
    except Exception as error:  # Of CuPy's many types
        raise CommandError(f"the kernels do not compile: {_in_one_line(error)}") from error
    print(f"{len(kernels)} kernels for {gpu.device}")
    _print_usage(kernels)
    slow = [kernel.name for kernel in kernels if kernel.local_bytes]
    if slow:
        raise CommandError(
            f"these kernels use local memory, which makes them slow: {', '.join(slow)}. "
            "Please report this"
        )


def _print_usage(kernels: list[CompiledKernel]) -> None:
    print(f"\n{'kernel':<26}{'registers':>10}{'local':>8}{'shared':>8}  memory in bytes")
    for kernel in kernels:
        print(
            f"{kernel.name:<26}{kernel.registers:>10}{kernel.local_bytes:>8}"
            f"{kernel.shared_bytes:>8}"
        )
    print(f"\n{'file':<26}{'seconds':>10}  next to none if CuPy had it in its cache")
    for file, seconds in {kernel.file: kernel.seconds for kernel in kernels}.items():
        print(f"{file:<26}{seconds:>10.3f}")


if __name__ == "__main__":
    sys.exit(main())
