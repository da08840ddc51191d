"""The functions of the module that gpuphot may use, each with CuPy's signature."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import array as arrays
from .array import (
    allocate,
    check_dtype,
    compute,
    compute_into,
    compute_on_visit,
    device_array,
    from_foreign,
    layout,
    ndarray,
    unwrap,
    upload,
)
from .device import Stream

# -------------------------------------------------------------------------- between host and GPU


def array(
    obj: Any, dtype: DTypeLike | None = None, copy: bool = True, order: str | None = "K"
) -> ndarray:
    if isinstance(obj, ndarray):
        fits = {"C": obj.flags.c_contiguous, "F": obj.flags.f_contiguous}.get(order, True)
        dtype = obj.dtype if dtype is None else dtype
        return obj.astype(dtype, order or "K", copy=copy or not fits)
    if hasattr(obj, "__cuda_array_interface__"):
        return array(from_foreign(obj), dtype, copy, order)
    if isinstance(obj, (list, tuple)) and builtins.any(isinstance(item, ndarray) for item in obj):
        raise TypeError("a sequence of device arrays: use stack or concatenate")
    host = np.array(obj, dtype, order=order or "C")
    host = host.astype(check_dtype(host.dtype.newbyteorder("=")), copy=False)
    return upload(host) if host.ndim else full((), host[()])


def asarray(
    a: Any, dtype: DTypeLike | None = None, order: str | None = None, *, blocking: bool = False
) -> ndarray:
    return array(a, dtype, copy=False, order=order)


def ascontiguousarray(a: ndarray, dtype: DTypeLike | None = None) -> ndarray:
    result = array(device_array(a), dtype, copy=False, order="C")
    return result if result.ndim else result.ravel()


def asnumpy(
    a: Any,
    stream: Stream | None = None,
    order: str = "C",
    out: NDArray | None = None,
    *,
    blocking: bool = True,
) -> NDArray:
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    return np.asarray(a, order=order)


# ------------------------------------------------------------------------------------- creation


def empty(shape: Any, dtype: DTypeLike = float, order: str = "C") -> ndarray:
    return allocate(shape, dtype, order)


def full(shape: Any, fill_value: Any, dtype: DTypeLike | None = None, order: str = "C") -> ndarray:
    if dtype is None:
        dtype = np.asarray(unwrap(fill_value)).dtype
    result = empty(shape, dtype, order)
    result.fill(fill_value)
    return result


def zeros(shape: Any, dtype: DTypeLike = float, order: str = "C") -> ndarray:
    return full(shape, 0, dtype, order)


def ones(shape: Any, dtype: DTypeLike = float, order: str = "C") -> ndarray:
    return full(shape, 1, dtype, order)


def empty_like(prototype: ndarray, dtype: DTypeLike | None = None) -> ndarray:
    dtype = device_array(prototype).dtype if dtype is None else dtype
    return empty(prototype.shape, dtype, layout(prototype._host))


def full_like(a: ndarray, fill_value: Any, dtype: DTypeLike | None = None) -> ndarray:
    result = empty_like(a, dtype)
    result.fill(fill_value)
    return result


def zeros_like(a: ndarray, dtype: DTypeLike | None = None) -> ndarray:
    return full_like(a, 0, dtype)


def ones_like(a: ndarray, dtype: DTypeLike | None = None) -> ndarray:
    return full_like(a, 1, dtype)


def arange(
    start: float, stop: float | None = None, step: float = 1, dtype: DTypeLike | None = None
) -> ndarray:
    first, last = (0, start) if stop is None else (start, stop)
    return compute(lambda: np.arange(first, last, step, dtype))


# ---------------------------------------------------------------------------- element by element


class ufunc:  # noqa: N801
    """A function of every element; CuPy takes device arrays and scalars, no sequences."""

    def __init__(self, function: np.ufunc) -> None:
        self._function = function
        self.__name__ = function.__name__
        self.nin = function.nin
        self.nout = function.nout

    def __call__(
        self, *operands: Any, out: ndarray | None = None, dtype: DTypeLike | None = None
    ) -> ndarray:
        if len(operands) != self.nin:
            raise TypeError(f"{self.__name__} takes {self.nin} arrays, got {len(operands)}")
        if out is not None:
            return compute_into(out, self._function, *operands)
        return compute(lambda *hosts: self._function(*hosts, dtype=dtype), *operands)


UFUNCS = {
    name: ufunc(getattr(np, name))
    for name in (
        "abs", "absolute", "arctan2", "ceil", "exp", "floor", "hypot", "isfinite", "isinf",
        "isnan", "log", "log10", "logical_and", "logical_not", "logical_or", "maximum", "minimum",
        "rint", "sign", "sqrt", "square",
    )
}  # fmt: skip


def where(condition: ndarray, x: Any = None, y: Any = None) -> ndarray | tuple[ndarray, ...]:
    if (x is None) != (y is None):
        raise ValueError("Must provide both 'x' and 'y' or neither.")
    if x is None:
        return nonzero(condition)
    return compute(np.where, device_array(condition), x, y)


def clip(a: ndarray, a_min: Any, a_max: Any) -> ndarray:
    return arrays.clip(a, a_min, a_max)


# --------------------------------------------------------------------------------------- shapes


def stack(tup: Sequence[ndarray], axis: int = 0) -> ndarray:
    return _join(np.stack, tup, axis)


def concatenate(tup: Sequence[ndarray], axis: int = 0) -> ndarray:
    return _join(np.concatenate, tup, axis)


def _join(function: Callable, sequence: Sequence[ndarray], axis: int) -> ndarray:
    return compute(
        lambda *hosts: function(hosts, axis=axis), *(device_array(item) for item in sequence)
    )


def broadcast_to(array: ndarray, shape: Any) -> ndarray:
    return device_array(array)._view(np.broadcast_to(array._host, shape))


def ravel(a: ndarray, order: str = "C") -> ndarray:
    return device_array(a).ravel(order)


def reshape(a: ndarray, newshape: Any, order: str = "C") -> ndarray:
    return device_array(a).reshape(newshape, order=order)


def ndim(a: Any) -> int:
    return a.ndim if isinstance(a, ndarray) else np.ndim(a)


def shape(a: Any) -> tuple[int, ...]:
    return a.shape if isinstance(a, ndarray) else np.shape(a)


# --------------------------------------------------------------------------- reductions, indices


def any(a: ndarray, axis: Any = None, *, keepdims: bool = False) -> ndarray:
    return device_array(a).any(axis, keepdims=keepdims)


def all(a: ndarray, axis: Any = None, *, keepdims: bool = False) -> ndarray:
    return device_array(a).all(axis, keepdims=keepdims)


def max(a: ndarray, axis: Any = None, *, keepdims: bool = False) -> ndarray:
    return device_array(a).max(axis, keepdims=keepdims)


def min(a: ndarray, axis: Any = None, *, keepdims: bool = False) -> ndarray:
    return device_array(a).min(axis, keepdims=keepdims)


def sum(
    a: ndarray, axis: Any = None, dtype: DTypeLike | None = None, *, keepdims: bool = False
) -> ndarray:
    return device_array(a).sum(axis, dtype, keepdims=keepdims)


def cumsum(a: ndarray, axis: int | None = None, dtype: DTypeLike | None = None) -> ndarray:
    return device_array(a).cumsum(axis, dtype)


def count_nonzero(a: ndarray, axis: Any = None) -> ndarray:
    return compute(lambda host: np.count_nonzero(host, axis), device_array(a))


def nonzero(a: ndarray) -> tuple[ndarray, ...]:
    return device_array(a).nonzero()


def flatnonzero(a: ndarray) -> ndarray:
    return device_array(a).ravel().nonzero()[0]


def argsort(a: ndarray, axis: int = -1) -> ndarray:
    return device_array(a).argsort(axis)


def lexsort(keys: ndarray) -> ndarray:
    # CuPy takes no sequences of keys; asking a tuple for its dimensions fails there as here.
    if keys.ndim > 2:
        raise NotImplementedError("Keys with the rank of three or more is not supported in lexsort")
    return compute(np.lexsort, device_array(keys))


def searchsorted(a: ndarray, v: ndarray, side: str = "left") -> ndarray:
    search = lambda host, values: np.searchsorted(host, values, side)  # noqa: E731
    return compute(search, device_array(a), device_array(v))


def unique(
    ar: ndarray,
    return_index: bool = False,
    return_inverse: bool = False,
    return_counts: bool = False,
) -> Any:
    return compute_on_visit(
        lambda host: np.unique(host, return_index, return_inverse, return_counts), device_array(ar)
    )


def take(a: ndarray, indices: ndarray, axis: int | None = None) -> ndarray:
    return device_array(a).take(indices, axis)


def get_array_module(*args: Any) -> Any:
    import cupy

    return cupy if builtins.any(isinstance(arg, ndarray) for arg in args) else np


FUNCTIONS: dict[str, Callable] = {
    function.__name__: function
    for function in (
        all, any, arange, argsort, array, asarray, ascontiguousarray, asnumpy, broadcast_to, clip,
        concatenate, count_nonzero, cumsum, empty, empty_like, flatnonzero, full, full_like,
        get_array_module, lexsort, max, min, ndim, nonzero, ones, ones_like, ravel, reshape,
        searchsorted, shape, stack, sum, take, unique, where, zeros, zeros_like,
    )
} | UFUNCS  # fmt: skip

CONSTANTS = {
    name: getattr(np, name)
    for name in (
        "bool_", "dtype", "e", "finfo", "float32", "float64", "iinfo", "inf", "int8", "int16",
        "int32", "int64", "intp", "nan", "newaxis", "pi", "uint8", "uint16", "uint32", "uint64",
    )
}  # fmt: skip

arrays.NUMPY_FUNCTIONS.update(
    {name: function for name, function in FUNCTIONS.items() if hasattr(np, name)}
)
