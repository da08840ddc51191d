"""Rules that keep the house in order: who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gpuphot

PACKAGE = Path(gpuphot.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# A folder, and what of gpuphot its modules may import.
ALLOWED = {
    "models": {"gpuphot.models"},
    "numpy_backend": {"gpuphot.models", "gpuphot.numpy_backend"},
    "cupy_backend": {"gpuphot.models", "gpuphot.cupy_backend"},
    "measure": {
        "gpuphot.measure",
        "gpuphot.models",
        "gpuphot.backend",
        "gpuphot.flags",
        "gpuphot._version",
    },
}


def imports_of(path):
    """Absolute names of everything a module imports, anywhere in it."""
    package = ("gpuphot", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_within(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    folder = path.relative_to(PACKAGE).parts[0]
    names = list(imports_of(path))
    if folder in ALLOWED:
        for name in names:
            assert not is_within(name, ["gpuphot"]) or is_within(name, ALLOWED[folder]), name
    if folder == "numpy_backend":
        assert not any(is_within(name, ["gpuphot.cupy_backend"]) for name in names)
    if folder != "cupy_backend":
        assert not any(is_within(name, ["cupy", "cupyx"]) for name in names)
    if not (path.stem.startswith("sep_") or path.stem == "detect"):
        assert not any(is_within(name, ["sep_x"]) for name in names)


def test_backends_are_twins():
    """Every primitive of NumPy has a CuPy twin: same file, same name, same arguments."""
    numpy_folder, cupy_folder = PACKAGE / "numpy_backend", PACKAGE / "cupy_backend"
    names = primitives_of(numpy_folder)
    assert names == primitives_of(cupy_folder)
    for file in sorted({path.name for path in numpy_folder.glob("*.py")}):
        twins = functions_of(cupy_folder / file) if (cupy_folder / file).exists() else {}
        for name, arguments in functions_of(numpy_folder / file).items():
            if name in names and name != "device_of":
                assert twins.get(name) == arguments, f"{file}: {name}"


def primitives_of(folder):
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.parse((folder / "primitives.py").read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    return set(names)


def functions_of(path):
    return {
        node.name: [argument.arg for argument in node.args.args + node.args.kwonlyargs]
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


def test_measure_holds_no_pixel_arithmetic():
    """It may not reach into the planes of a frame, except to hand one out."""
    for path in (PACKAGE / "measure").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp):
                for side in (node.left, node.right):
                    assert not (
                        isinstance(side, ast.Attribute) and side.attr in ("data", "err", "bad")
                    )


@pytest.mark.parametrize("module", ["gpuphot", "gpuphot.cli"])
def test_importing_loads_neither_cupy_nor_sep_nor_matplotlib(module):
    code = (
        f"import sys, {module}; "
        "print([name for name in ('cupy', 'sep_x', 'matplotlib') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "[]", answer.stderr


def test_measuring_works_without_sep_and_cupy():
    code = (
        "import sys; sys.modules['sep_x'] = sys.modules['cupy'] = None\n"
        "import numpy as np, gpuphot\n"
        "from astropy.table import Table\n"
        "t = gpuphot.measure_objects(Table({'x': [9.0], 'y': [9.0]}), np.ones((20, 20)))\n"
        "print(t['flux'][0])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "0.0", answer.stderr


def test_public_names_are_documented():
    for name in gpuphot.__all__:
        if not name.startswith("__"):
            assert getattr(gpuphot, name).__doc__


def test_flags_have_a_meaning():
    from gpuphot.flags import MEANING, Flag

    assert set(MEANING) == set(Flag)
