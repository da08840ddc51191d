"""What a `cupy` offers and how it behaves, in plain data: the real one or the stand-in.

Run as a script, this file needs nothing but the real CuPy. It reads names from its input and
writes their descriptions, and what CuPy does in a number of situations, to its output.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import operator
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# ---- names and signatures ------------------------------------------------------------------------


def describe(names: list[str]) -> dict[str, dict[str, Any] | None]:
    """A description of each dotted name, None for those that do not exist."""
    return {name: _describe(name) for name in names}


def _describe(name: str) -> dict[str, Any] | None:
    try:
        thing = _find(name)
    except AttributeError:
        return None
    if inspect.ismodule(thing):
        return {"kind": "module"}
    if isinstance(thing, type) and thing.__module__ == "numpy":
        return {"kind": "class", "value": f"numpy.{thing.__name__}"}
    if isinstance(thing, type) and issubclass(thing, Exception):
        return {"kind": "exception", "bases": _standard_bases(thing)}
    if isinstance(thing, type):
        return {"kind": "class", "parameters": _parameters(thing)}
    if hasattr(thing, "nin") and callable(thing):
        return {"kind": "ufunc", "n_operands": thing.nin}
    if callable(thing):
        return {"kind": "function", "parameters": _parameters(thing)}
    return {"kind": "value", "value": repr(thing) if _is_plain(thing) else None}


def _find(name: str) -> Any:
    """The thing of this name, its modules imported."""
    first, *rest = name.split(".")
    thing = importlib.import_module(first)
    for part in rest:
        if inspect.ismodule(thing) and not hasattr(thing, part):
            try:
                importlib.import_module(f"{thing.__name__}.{part}")
            except ImportError:
                raise AttributeError(name) from None
        thing = getattr(thing, part)
    return thing


def _is_plain(thing: Any) -> bool:
    return thing is None or isinstance(thing, (bool, int, float, str))


def _standard_bases(cls: type) -> list[str]:
    """The exceptions of Python that one is."""
    bases = [base for base in cls.__mro__ if base.__module__ == "builtins"]
    return [base.__name__ for base in bases if issubclass(base, Exception)]


def _parameters(thing: Callable) -> list[list[str]] | None:
    """Name, kind ("positional", "keyword", "*", "**") and default of each; None if unknown."""
    written = _from_docstring(thing)
    if written is not None:
        return written
    try:
        return _from_signature(inspect.signature(thing))
    except (TypeError, ValueError):
        return None


_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}


def _from_signature(signature: inspect.Signature) -> list[list[str]]:
    parameters = [
        [p.name, _KINDS[p.kind], "" if p.default is p.empty else _default(p.default)]
        for p in signature.parameters.values()
    ]
    return [p for p in parameters if p[0] != "self"]


def _default(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)


def _from_docstring(thing: Any) -> list[list[str]] | None:
    """The signature that compiled functions have in their docstring, with the types of C in it.

    Where two lines hold one, the first was made by the compiler.
    """
    name = getattr(thing, "__name__", "")
    lines = (getattr(thing, "__doc__", None) or "").replace("\\*", "*").splitlines()
    pattern = re.compile(rf"\s*(?:\w+\.)*(?:{re.escape(name)}|__init__)\((.*)\)")
    found = [match[1] for match in map(pattern.match, lines[:4]) if match]
    return _from_text(found[-1]) if found else None


def _from_text(text: str) -> list[list[str]]:
    parameters, kind = [], "positional"
    for part in filter(None, (part.strip() for part in _split(text))):
        if part in ("*", "/"):
            kind = "keyword" if part == "*" else kind
            continue
        declaration, _, default = part.partition("=")
        name = declaration.split()[-1]
        stars = name[: len(name) - len(name.lstrip("*"))]
        parameters.append([name.lstrip("*"), stars or kind, default])
        kind = "keyword" if stars == "*" else kind
    return [p for p in parameters if p[0] != "self"]


def _split(text: str) -> Iterator[str]:
    """The parts between commas, but for those in brackets."""
    depth, part = 0, ""
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            yield part
            part = ""
        else:
            part += character
    yield part


# ---- behaviour -----------------------------------------------------------------------------------

SITUATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    # cp is the module, a holds 0, 1, 2, 3 on the device, n the same on the host. First what
    # the real CuPy answers without asking the driver, hence on any machine.
    "np.asarray(a)": lambda cp, a, n: np.asarray(a),
    "np.ma.asarray(a)": lambda cp, a, n: np.ma.asarray(a),
    "n[:] = a": lambda cp, a, n: operator.setitem(n, slice(None), a),
    "a[:] = n": lambda cp, a, n: operator.setitem(a, slice(None), n),
    "a[...] = n": lambda cp, a, n: operator.setitem(a, ..., n),
    "a[:] = [0, 0, 0, 0]": lambda cp, a, n: operator.setitem(a, slice(None), [0, 0, 0, 0]),
    "a.fill(n)": lambda cp, a, n: a.fill(n),
    "a.set([0, 0, 0, 0])": lambda cp, a, n: a.set([0, 0, 0, 0]),
    "a.set(float32)": lambda cp, a, n: a.set(n.astype(np.float32)),
    "a.set(n[:3])": lambda cp, a, n: a.set(n[:3]),
    "a.astype(object)": lambda cp, a, n: a.astype(object),
    "a.note = 1": lambda cp, a, n: setattr(a, "note", 1),
    "hash(a)": lambda cp, a, n: hash(a),
    "len(a)": lambda cp, a, n: len(a),
    "len(a[0])": lambda cp, a, n: len(a[0]),
    "iter(a[0])": lambda cp, a, n: list(a[0]),
    "a[1]": lambda cp, a, n: a[1],
    "a[::2]": lambda cp, a, n: a[::2],
    "a[None, 1:]": lambda cp, a, n: a[None, 1:],
    "a[4]": lambda cp, a, n: a[4],
    "a[0, 0]": lambda cp, a, n: a[0, 0],
    "a[a]": lambda cp, a, n: a[a],
    "a[short mask]": lambda cp, a, n: a[a.view(cp.bool_)[:3]],
    "n.tolist()[a[0]]": lambda cp, a, n: n.tolist()[a[0]],
    "range(a[0])": lambda cp, a, n: range(a[0]),
    "operator.index(a[0])": lambda cp, a, n: operator.index(a[0]),
    "a @ a": lambda cp, a, n: a @ a,
    "a.reshape(2, 2)": lambda cp, a, n: a.reshape(2, 2),
    "a.reshape((2, -1))": lambda cp, a, n: a.reshape((2, -1)),
    "a.reshape(3)": lambda cp, a, n: a.reshape(3),
    "a.reshape(2, 2)[:, 0]": lambda cp, a, n: a.reshape(2, 2)[:, 0].flags.c_contiguous,
    "a.ravel()": lambda cp, a, n: a.ravel(),
    "a.reshape(2, 2).T": lambda cp, a, n: a.reshape(2, 2).T.strides,
    "a.view(uint8)": lambda cp, a, n: a.view(cp.uint8),
    "a[::2].view(uint8)": lambda cp, a, n: a[::2].view(cp.uint8),
    "a.nbytes": lambda cp, a, n: a.nbytes,
    "a[1].data - a.data": lambda cp, a, n: a[1].data.ptr - a.data.ptr,
    "broadcast_to(a)": lambda cp, a, n: cp.broadcast_to(a, (2, 4)).strides,
    "broadcast_to(n)": lambda cp, a, n: cp.broadcast_to(n, (2, 4)),
    "ascontiguousarray(a) is a": lambda cp, a, n: cp.ascontiguousarray(a) is a,
    "ascontiguousarray(n)": lambda cp, a, n: cp.ascontiguousarray(n),
    "ascontiguousarray(a[0])": lambda cp, a, n: cp.ascontiguousarray(a[0]),
    "ascontiguousarray(strided)": lambda cp, a, n: cp.ascontiguousarray(a[::2]),
    "a.astype(copy=False) is a": lambda cp, a, n: a.astype(a.dtype, copy=False) is a,
    "asnumpy(n) is n": lambda cp, a, n: cp.asnumpy(n) is n,
    "np.ndim(a)": lambda cp, a, n: np.ndim(a),
    "np.shape(a)": lambda cp, a, n: np.shape(a),
    "any(n)": lambda cp, a, n: cp.any(n),
    "flatnonzero(n)": lambda cp, a, n: cp.flatnonzero(n),
    "stack([n, n])": lambda cp, a, n: cp.stack([n, n]),
    "lexsort((a, a))": lambda cp, a, n: cp.lexsort((a, a)),
    "sum([1])": lambda cp, a, n: cp.sum([1]),
    "empty(3, '>f8')": lambda cp, a, n: cp.empty(3, ">f8"),
    "get_array_module(a) is cp": lambda cp, a, n: cp.get_array_module(a) is cp,
    "get_array_module(n) is np": lambda cp, a, n: cp.get_array_module(n) is np,
    "RawModule(options=[])": lambda cp, a, n: cp.RawModule(code="", options=[]),
    "RawModule()": lambda cp, a, n: cp.RawModule(),
    # What follows needs a device: it is compared on machines that have one.
    "np.sqrt(a)": lambda cp, a, n: np.sqrt(a),
    "np.float64(2) * a": lambda cp, a, n: np.float64(2) * a,
    "np.float64(2) < a": lambda cp, a, n: np.float64(2) < a,
    "2 * a": lambda cp, a, n: 2 * a,
    "a.sum()": lambda cp, a, n: a.sum(),
    "np.sum(a)": lambda cp, a, n: np.sum(a),
    "(a > 1).any()": lambda cp, a, n: (a > 1).any(),
    "float(a[1])": lambda cp, a, n: float(a[1]),
    "math.sqrt(a[1])": lambda cp, a, n: math.sqrt(a[1]),
    "bool(a[1])": lambda cp, a, n: bool(a[1]),
    "bool(a)": lambda cp, a, n: bool(a),
    "a + n": lambda cp, a, n: a + n,
    "n + a": lambda cp, a, n: n + a,
    "np.add(a, n)": lambda cp, a, n: np.add(a, n),
    "maximum(a, n)": lambda cp, a, n: cp.maximum(a, n),
    "where(a > 1, a, n)": lambda cp, a, n: cp.where(a > 1, a, n),
    "sqrt([1.0])": lambda cp, a, n: cp.sqrt([1.0]),
    "a += int array": lambda cp, a, n: operator.iadd(a, cp.arange(4)),
    "int array += a": lambda cp, a, n: operator.iadd(cp.arange(4), a),
    "uint8 array *= 0.5": lambda cp, a, n: operator.imul(cp.zeros(4, cp.uint8), 0.5),
    "a += (2, 4) array": lambda cp, a, n: operator.iadd(a, cp.ones((2, 4))),
    "int array[:] = a": lambda cp, a, n: operator.setitem(cp.arange(4), slice(None), a),
    "a[a > 1]": lambda cp, a, n: a[a > 1],
    "a[int array]": lambda cp, a, n: a[cp.arange(2)],
    "unique(a)": lambda cp, a, n: cp.unique(a),
    "nonzero(a)[0]": lambda cp, a, n: cp.nonzero(a)[0],
    "lexsort(stack([a, a]))": lambda cp, a, n: cp.lexsort(cp.stack([a, a])),
    "clip(a, None, 1)": lambda cp, a, n: cp.clip(a, None, 1),
    "full(3, 1)": lambda cp, a, n: cp.full(3, 1),
    "cumsum(a > 1)": lambda cp, a, n: cp.cumsum(a > 1),
    "sum(a > 1)": lambda cp, a, n: cp.sum(a > 1),
    "count_nonzero(a)": lambda cp, a, n: cp.count_nonzero(a),
    "searchsorted(a, a)": lambda cp, a, n: cp.searchsorted(a, a),
    "asarray('>i2')": lambda cp, a, n: cp.asarray(np.arange(3, dtype=">i2")),
    "asarray(n.T)": lambda cp, a, n: cp.asarray(n.reshape(2, 2).T).strides,
    "array(n.T)": lambda cp, a, n: cp.array(n.reshape(2, 2).T).strides,
    "empty_like(a.T)": lambda cp, a, n: cp.empty_like(a.reshape(2, 2).T).strides,
    "a.T + 1": lambda cp, a, n: (a.reshape(2, 2).T + 1).strides,
    "a.T.astype()": lambda cp, a, n: a.reshape(2, 2).T.astype(cp.float32).strides,
    "a.T.copy()": lambda cp, a, n: a.reshape(2, 2).T.copy().strides,
    "get_current_stream()": lambda cp, a, n: cp.cuda.get_current_stream().ptr,
    "Device(99)": lambda cp, a, n: cp.cuda.Device(99).mem_info,
}  # fmt: skip


def observe(cp: Any, make: Callable[[np.ndarray], Any]) -> dict[str, str]:
    """What happens in each situation; `make` turns a host array into one on the device."""
    return {name: _outcome(act, cp, make) for name, act in SITUATIONS.items()}


def _outcome(act: Callable, cp: Any, make: Callable[[np.ndarray], Any]) -> str:
    n = np.arange(4.0)
    try:
        result = act(cp, make(n.copy()), n)
    except Exception as error:
        return "no device" if _says_no_device(error) else type(error).__name__
    if isinstance(result, cp.ndarray):
        return f"device array of {result.dtype} and shape {result.shape}"
    return f"{type(result).__name__} {result}"


def _says_no_device(error: Exception) -> bool:
    return any(name in str(error) for name in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice"))


def _borrow(host: np.ndarray) -> Any:
    """A real CuPy array over host memory: enough for what needs no device."""
    import cupy

    memory = cupy.cuda.UnownedMemory(host.ctypes.data, host.nbytes, host, 0)
    return cupy.ndarray(host.shape, host.dtype, cupy.cuda.MemoryPointer(memory, 0))


def _main() -> None:
    import cupy

    make = cupy.asarray if cupy.cuda.is_available() else _borrow
    answer = {
        "version": cupy.__version__,
        "has_device": cupy.cuda.is_available(),
        "names": describe(json.load(sys.stdin)),
        "behaviour": observe(cupy, make),
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main()
