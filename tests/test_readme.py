"""The READMEs keep their word: examples and commands run, links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter, namedtuple
from functools import partial
from glob import glob
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from gpuphot import place_psf_stamps
from gpuphot.cli import main
from gpuphot.cupy_backend.probe import find_gpu
from gpuphot.images import read_image
from gpuphot.sky import pixel_to_sky

from .psfs import make_psf, write_psf_file

ROOT = Path(__file__).parents[1]
PACKAGE_READMES = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("gpuphot/*/README.md"))
EXECUTED = ["README.md", *PACKAGE_READMES]
LINKED = [*EXECUTED, "CHANGELOG.md", "bench/README.md", "tests/hostcuda/README.md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)

Block = namedtuple("Block", "language line text")


def blocks(document):
    """Fenced blocks of a document, and the line that each one begins in."""
    text = document.read_text()
    return [Block(m[1], text.count("\n", 0, m.start(2)) + 1, m[2]) for m in FENCED.finditer(text)]


# The files that commands and examples name


def star_field(seed):
    """Positions of 80 stars, and their image, without the stars' Poisson noise."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(10, 290, (2, 80))
    sky = rng.normal(100, 5, (300, 300))
    return x, y, place_psf_stamps(sky, 3.2, x, y, rng.uniform(3e3, 5e4, 80), backend="numpy")


def write_image(path, seed=1):
    header = fits.Header(
        {
            "GAIN": 1.5, "SATURATE": 60000.0, "EXPTIME": 30.0, "FILTER": "r",
            "DATE-OBS": "2026-03-01T22:15:00",
            "CTYPE1": "RA---TAN", "CRPIX1": 150.5, "CRVAL1": 250.4, "CDELT1": -2e-4,
            "CTYPE2": "DEC--TAN", "CRPIX2": 150.5, "CRVAL2": 36.5, "CDELT2": 2e-4,
        }
    )  # fmt: skip
    fits.writeto(path, star_field(seed)[2].astype(np.float32), header)


def write_sky_positions(path):
    x, y, _ = star_field(1)
    ra, dec = pixel_to_sky(read_image("image.fits").wcs, x, y)
    Table({"source_id": np.arange(80), "ra": ra, "dec": dec}).write(path)


def write_flags(path):
    flags = np.zeros((300, 300), np.int16)
    flags[100:103, 100:150] = 4
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(flags, name="DQ")]).writeto(path)


def write_detections(path):
    x, y, _ = star_field(1)
    Table({"X_IMAGE": x + 1, "Y_IMAGE": y + 1}).write(path)


FILES = {
    "image.fits": write_image,
    "night/one.fits": lambda path: write_image(path, 2),
    "night/two.fits": lambda path: write_image(path, 3),
    "image.weight.fits": lambda path: fits.writeto(path, np.full((300, 300), 1 / 25)),
    "flags.fits": write_flags,
    "gaia.csv": write_sky_positions,
    "detected.fits": write_detections,
    "model.psf": lambda path: write_psf_file(path, make_psf(25, 25, 1.0, 2)),
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The current directory, with all FILES in it and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPUPHOT_BACKEND", raising=False)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    for name, write in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write(path)


# Running a block


def run_example(block, document):
    """Run Python code; as a script in a process of its own if it starts processes itself."""
    if re.search(r"concurrent\.futures|multiprocessing", block.text):
        run_script(block.text)
        return
    lines_before = "\n" * (block.line - 1)  # So that a traceback names the line of the document
    exec(compile(lines_before + block.text, document, "exec"), {"__name__": "__main__"})


def run_script(code):
    assert 'if __name__ == "__main__":' in code, "processes that are spawned import the script"
    script = Path("readme_example.py")
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr


def commands(text):
    """The words of each command of a shell block, file names expanded as the shell does it."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for between, command in itertools.groupby(words, "&&".__eq__):
            if not between:
                yield [name for word in command for name in sorted(glob(word)) or [word]]


def run_command(words):
    """Run a command of gpuphot, and check what else a README may tell its reader to run."""
    match [Path(words[0]).name, *words[1:]]:
        case ["gpuphot", *arguments]:
            run_gpuphot(arguments)
        case ["pip", "install", "-e", target]:
            check_extras(target)
        case ["python3", "-m", "venv", ".venv"] | ["python", "-m", "pytest"]:
            pass  # Whoever runs this test has done so
        case _:
            raise AssertionError(f"unknown command in README: {shlex.join(words)}")


def run_gpuphot(arguments):
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard):
        try:
            status = main(arguments)
        except SystemExit as left:
            status = left.code or 0
    said = heard.getvalue()
    if arguments == ["info", "--compile"] and find_gpu().problem is not None:
        assert (status, said.count("\n")) == (2, 1), said
    else:
        assert status == 0, said


def check_extras(target):
    extras = re.fullmatch(r"\.\[([\w,]+)\]", target)
    assert extras, f"{target} is not this package with extras"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    unknown = set(extras[1].split(",")) - set(project["optional-dependencies"])
    assert not unknown, f"pyproject.toml has no extras {unknown}"


def steps(name):
    """Line and function of everything that runs, in the order of the document."""
    for block in blocks(ROOT / name):
        if block.language == "python":
            yield block.line, partial(run_example, block, name)
        elif block.language == "sh":
            for words in commands(block.text):
                yield block.line, partial(run_command, words)


@pytest.mark.parametrize("name", EXECUTED)
@pytest.mark.usefixtures("workplace")
def test_examples_and_commands_run(name):
    """From the top to the end in one directory, like a patient reader; all failures are told."""
    errors = []
    for line, run in steps(name):
        try:
            run()
        except Exception as error:
            error.add_note(f"in the block at line {line} of {name}")
            errors.append(error)
    if errors:
        raise ExceptionGroup(f"{name} does not run", errors)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("curl https://example.org", "unknown command in README: curl"),
        ("python -m http.server", "unknown command"),
        ('pip install -e ".[plot,cuda11]"', "no extras {'cuda11'}"),
        ("pip install -e elsewhere", "elsewhere is not"),
        ("gpuphot measure missing.fits -o out.csv", "missing.fits"),
        ("gpuphot measure --no-such-option", "gpuphot: error:"),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_command_that_does_not_work_is_found(command, words):
    (command,) = commands(command)
    with pytest.raises(AssertionError, match=re.escape(words)):
        run_command(command)


PARALLEL = """
from concurrent.futures import ProcessPoolExecutor

from gpuphot import Flag

if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        print(*pool.map(Flag, [0x200, 0x400]), file=open("done.txt", "w"))
"""


def test_example_that_starts_processes_runs_as_a_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example(Block("python", 1, PARALLEL), "README.md")
    assert Path("done.txt").read_text().split() == ["512", "1024"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('if __name__ == "__main__":', "import the script"),
        ("from gpuphot import Flag", "NameError: name 'Flag' is not defined"),
    ],
)
def test_script_that_does_not_work_is_found(tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match=words):
        run_example(Block("python", 1, PARALLEL.replace(line, "if True:" * ("if" in line))), "")


@pytest.mark.usefixtures("workplace")
def test_commands_are_split_as_the_shell_splits_them():
    text = "# both\n.venv/bin/a 'b c' && d night/*.fits \\\n  -o e.csv  # so\n\nf no/*.fits\n"
    night = ["night/one.fits", "night/two.fits"]
    assert list(commands(text)) == [
        [".venv/bin/a", "b c"], ["d", *night, "-o", "e.csv"], ["f", "no/*.fits"],
    ]  # fmt: skip


# The front page


def test_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 300


def test_front_page_begins_with_installing_and_testing():
    install, test = [block.text for block in blocks(ROOT / "README.md")][:2]
    assert install.count("\n") == test.count("\n") == 1, ".ci/run wants a single line in each"
    assert install.endswith("gpuphot demo\n")
    assert test.endswith("pytest\n")


# Links


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", FENCED.sub("", text))


def anchors(document):
    """What GitHub makes of the headings: repeated ones are numbered."""
    seen = Counter()
    for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", document.read_text()), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        yield f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor
        seen[anchor] += 1


def broken_links(document):
    """Relative links, pictures among them, whose file or heading does not exist."""
    text = without_code(document.read_text())
    for link in re.findall(r"""(?:\]\(|\b(?:src|href)=")([^\s)"]+)""", text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("name", LINKED)
def test_links_lead_somewhere(name):
    assert list(broken_links(ROOT / name)) == []


@pytest.mark.parametrize("name", LINKED)
def test_pictures_are_in_the_repository(name):
    assert re.findall(r"!\[[^\]]*\]\(\w+:\S*", without_code((ROOT / name).read_text())) == []


def test_broken_links_are_found(tmp_path):
    document = tmp_path / "page.md"
    document.write_text(
        "# It's `one`_page (a-b)\n## Same\n## Same\n[`a`](#its-one_page-a-b) [b](#same-1)\n"
        "[c](page.md#same) [d](https://a.org) `[e](code)`\n```\n# No heading\n[f](code)\n```\n"
        '[g](#no-heading) [h](#same-2) ![i](no.png) [![j](no.svg)](page.md) <img src="no.gif">\n'
    )
    expected = ["#no-heading", "#same-2", "no.png", "no.svg", "no.gif"]
    assert list(broken_links(document)) == expected
