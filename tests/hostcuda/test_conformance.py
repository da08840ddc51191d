"""The stand-in against the real CuPy: it invents no names, no parameters and no manners.

The wheel is enough, a GPU is not needed; where there is one, more situations are compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from types import ModuleType
from typing import Any

import pytest

from . import standin
from .standin import describe, functions
from .standin.missing import LIBRARY_OF

WHEELS = ("cupy-cuda12x", "cupy-cuda13x", "cupy")

# What Python gives to every class, and what makes the stand-in one.
OWN = {
    "__annotations__", "__dict__", "__doc__", "__firstlineno__", "__getattr__", "__init__",
    "__module__", "__slots__", "__static_attributes__", "__weakref__",
}  # fmt: skip

# Where the stand-in's answer and CuPy's differ on purpose.
ON_PURPOSE = {
    "sum([1])": ("TypeError", "AttributeError"),
}


def offered() -> list[str]:
    """Dotted names of all that the stand-in has."""
    names: list[str] = []
    for module in standin.MODULES.values():
        for name, thing in vars(module).items():
            if name.startswith("__"):
                continue
            names.append(f"{module.__name__}.{name}")
            if isinstance(thing, type) and thing.__module__ != "numpy":
                names += [f"{names[-1]}.{member}" for member in members(thing)]
    return names


def members(cls: type) -> list[str]:
    return [
        name
        for name in vars(cls)
        if name not in OWN and (not name.startswith("_") or name.endswith("__"))
    ]


def disagreement(ours: dict[str, Any] | None, real: dict[str, Any] | None) -> str | None:
    """Where the stand-in offers what the real one does not have."""
    if ours is None or real is None:
        return "exists in one of them only"
    if ours["kind"] != real["kind"]:
        return f"is a {ours['kind']}, in CuPy a {real['kind']}"
    for key in ("bases", "n_operands", "value"):
        if ours.get(key) != real.get(key):
            return f"has {key} {ours.get(key)}, in CuPy {real.get(key)}"
    if "parameters" not in ours:
        return None
    if real["parameters"] is None:
        return "takes what CuPy does not say that it takes"
    return parameters_disagree(ours["parameters"], real["parameters"])


def is_protocol(name: str) -> bool:
    """Whether Python calls it by position, so that the names of its parameters do not matter."""
    last = name.rpartition(".")[2]
    return last.startswith("__") and last != "__call__"


def parameters_disagree(ours: list[list[str]], real: list[list[str]]) -> str | None:
    """The stand-in may leave parameters out, but not move, rename or default them otherwise."""
    leading = [p for p in ours if p[1] == "positional"]
    if leading != [p for p in real if p[1] == "positional"][: len(leading)]:
        return f"takes {ours}, in CuPy {real}"
    others = [p for p in ours if p[1] != "positional"]
    by_name = {p[0]: p for p in real}
    for name, kind, default in others:
        if name not in by_name or by_name[name][2] != default:
            return f"takes {name}={default}, in CuPy {real}"
        if by_name[name][1] not in (kind, "positional"):
            return f"takes {name} as {kind}, in CuPy {real}"
    return None


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """What the real CuPy says, in a process of its own."""
    if not any(is_installed(wheel) for wheel in WHEELS):
        pytest.skip("the stand-in cannot be compared: no CuPy wheel is installed")
    names = offered() + [f"cupy.{name}" for name in LIBRARY_OF if name != "sparse"]
    done = subprocess.run(
        [sys.executable, "-P", describe.__file__],
        input=json.dumps(names), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def is_installed(wheel: str) -> bool:
    try:
        metadata.version(wheel)
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture
def cp() -> Any:
    with standin.installed() as cupy:
        yield cupy


def compare(real: dict[str, Any]) -> dict[str, str]:
    ours = describe.describe(offered())
    found = {name: disagreement(ours[name], real["names"].get(name)) for name in ours}
    return {
        name: text
        for name, text in found.items()
        if text and not (is_protocol(name) and text.startswith("takes"))
    }


def test_all_names_and_signatures_are_cupys(real, cp):
    assert compare(real) == {}


def test_signatures_are_there_to_compare(real):
    compared = [name for name in offered() if (real["names"][name] or {}).get("parameters")]
    assert len([name for name in compared if not is_protocol(name)]) > 70


def test_version_is_that_of_the_wheel(real):
    assert real["version"].split(".")[0] == standin.package.VERSION.split(".")[0]


def test_names_refused_for_their_library_are_cupys(real):
    missing = [name for name in LIBRARY_OF if name != "sparse"]
    assert [name for name in missing if real["names"][f"cupy.{name}"] is None] == []


def test_it_behaves_like_cupy(real, cp):
    ours = describe.observe(cp, cp.asarray)
    answered = {name: text for name, text in real["behaviour"].items() if text != "no device"}
    assert len(answered) == len(ours) if real["has_device"] else len(answered) >= 55
    differing = {
        name: (ours[name], text)
        for name, text in answered.items()
        if ours[name] != text and ON_PURPOSE.get(name) != (ours[name], text)
    }
    assert differing == {}


# ---- the comparison itself finds what is wrong ---------------------------------------------------


def invented(a: Any) -> None: ...


def moved(shape: Any, order: str = "C", dtype: Any = float) -> None: ...


def renamed(a: Any, axes: Any = None) -> None: ...


def other_default(start: Any, stop: Any = 1, step: Any = 1, dtype: Any = None) -> None: ...


def added(a: Any, *, where: Any = None) -> None: ...


class NoMemoryError(MemoryError):
    """Stands for CuPy's error of the compiler, which is none of memory."""


@pytest.mark.parametrize(
    ("module", "name", "planted", "complaint"),
    [
        ("cupy", "nancount", invented, "exists in one of them only"),
        ("cupy", "empty", moved, "takes"),
        ("cupy", "any", renamed, "takes"),
        ("cupy", "arange", other_default, "takes"),
        ("cupy", "nonzero", added, "takes where"),
        ("cupy", "nan", 0.0, "has value"),
        ("cupy", "sqrt", functions.UFUNCS["hypot"], "has n_operands"),
        ("cupy", "isnan", invented, "is a function"),
        ("cupy.cuda.compiler", "CompileException", NoMemoryError, "has bases"),
    ],
)
def test_inventions_are_found(real, cp, monkeypatch, module, name, planted, complaint):
    target: ModuleType = standin.MODULES[module]
    monkeypatch.setitem(vars(target), name, planted)
    found = compare(real)
    assert list(found) == [f"{module}.{name}"]
    assert complaint in found[f"{module}.{name}"]


def test_inventions_in_classes_are_found(real, cp, monkeypatch):
    monkeypatch.setattr(cp.ndarray, "__index__", lambda self: 0, raising=False)
    monkeypatch.setattr(cp.ndarray, "take", lambda self, index: None)
    assert set(compare(real)) == {"cupy.ndarray.__index__", "cupy.ndarray.take"}
