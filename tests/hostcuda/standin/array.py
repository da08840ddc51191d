"""The array: a wrapper around a NumPy array that behaves as if it lived elsewhere.

It is no subclass of `numpy.ndarray`, which would mix with host arrays without anybody noticing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .device import (
    Block,
    Device,
    Stream,
    counters,
    current_device,
    get_current_stream,
    wait_for_producer,
)
from .missing import LIBRARY_OF, missing_library

NUMPY_FUNCTIONS: dict[str, Callable] = {}
"""What NumPy's functions do with a device array: CuPy's function of the same name."""

SCALARS = (bool, int, float, complex, np.generic)

_DTYPES = "?bhilqBHILQefdFD"


def garbage(shape: Any, dtype: DTypeLike, order: str = "C") -> NDArray:
    """Memory as a GPU might hand it out, only worse: NaN, or the largest unsigned integers."""
    host = np.empty(shape, dtype, order)
    host.reshape(-1, order="A").view(np.uint8)[...] = 0xFF
    return host


def allocate(shape: Any, dtype: DTypeLike, order: str = "C") -> ndarray:
    """A new array with garbage in it."""
    dtype = check_dtype(dtype)
    block = Block(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    return wrap(garbage(shape, dtype, order), block)


def check_dtype(dtype: DTypeLike) -> np.dtype:
    """A dtype that a device can hold."""
    dtype = np.dtype(dtype)
    if dtype.char not in _DTYPES:
        raise ValueError(f"Unsupported dtype {dtype}")
    if not dtype.isnative:
        raise ValueError(f"Unsupported dtype {dtype} with big-endian byte-order")
    return dtype


def layout(host: NDArray) -> str:
    """The order in which a copy of this memory is laid out."""
    return "F" if host.flags.fnc else "C"


def unwrap(operand: Any) -> Any:
    """The memory of a device array of this device, or a scalar; nothing else can be computed with.

    CuPy refuses most other operands as well; where it would upload them without a word, they are
    refused here so that the code says what it does.
    """
    if isinstance(operand, ndarray):
        if operand._device != current_device():
            raise ValueError(
                "Array device must be same as the current device: "
                f"array device = {operand._device} while current = {current_device()}"
            )
        return operand._host
    if isinstance(operand, SCALARS):
        return operand
    raise TypeError(f"Unsupported type {type(operand)}")


def device_array(operand: Any) -> ndarray:
    """The operand, which must be a device array."""
    if not isinstance(operand, ndarray):
        raise TypeError(f"a cupy.ndarray is needed, got {type(operand)}")
    return operand


def wrap(host: Any, block: Block | None = None) -> ndarray:
    """A device array of this memory, taken from the pool unless `block` says where it is."""
    host = np.asarray(host)
    array = ndarray.__new__(ndarray)
    array._block = Block(host.nbytes) if block is None else block
    array._host = host
    array._device = current_device()
    return array


# ------------------------------------------------------- work, now or when somebody waits for it


def compute(function: Callable, *operands: Any) -> ndarray:
    """A new array: a NumPy function of arrays and scalars, evaluated on the current stream.

    The shape and dtype of the result must not depend on the values of the arrays.
    """
    hosts = [unwrap(operand) for operand in operands]
    stream = get_current_stream()
    if stream._is_null:
        return wrap(_own(_evaluate(function, hosts)))
    rehearsed = np.asarray(_rehearse(function, hosts))
    result = allocate(rehearsed.shape, rehearsed.dtype, layout(rehearsed))
    stream._do(lambda: np.copyto(result._host, _evaluate(function, hosts)))
    return result


def compute_into(
    out: ndarray, function: Callable, *operands: Any, casting: str = "same_kind"
) -> ndarray:
    """Like `compute`, into an array that exists."""
    target = unwrap(device_array(out))
    hosts = [unwrap(operand) for operand in operands]
    rehearsed = np.asarray(_rehearse(function, hosts))
    if not np.can_cast(rehearsed.dtype, target.dtype, casting):
        raise TypeError(f"Cannot cast output from {rehearsed.dtype!r} to {target.dtype!r}")
    if np.broadcast_shapes(rehearsed.shape, target.shape) != target.shape:
        raise ValueError(f"shape {rehearsed.shape} cannot be broadcast to {target.shape}")
    get_current_stream()._do(
        lambda: np.copyto(target, _evaluate(function, hosts), casting="unsafe")
    )
    return out


def compute_on_visit(function: Callable, *operands: Any) -> Any:
    """New arrays whose sizes depend on values, for which CuPy makes the host wait."""
    hosts = [unwrap(operand) for operand in operands]
    get_current_stream()._finish()
    counters.visit(np.dtype(np.intp).itemsize)
    result = _evaluate(function, hosts)
    return tuple(map(wrap, result)) if isinstance(result, tuple) else wrap(_own(result))


def rearrange(array: ndarray, function: Callable) -> ndarray:
    """The same values in another shape: a view if NumPy can do with one, else a copy."""
    view = function(array._host)
    if view.size == 0 or np.may_share_memory(view, array._host):
        return array._view(view)
    return compute(function, array)


def upload(host: NDArray, target: ndarray | None = None, stream: Stream | None = None) -> ndarray:
    """Copy host memory, as it is now, to the device."""
    if target is None:
        target = allocate(host.shape, host.dtype, layout(host))
    counters.upload(host.nbytes)
    staged = host.copy()
    (stream or get_current_stream())._do(lambda: np.copyto(target._host, staged))
    return target


def _evaluate(function: Callable, hosts: list) -> Any:
    with np.errstate(all="ignore"):
        return function(*hosts)


def _rehearse(function: Callable, hosts: list) -> Any:
    """The function of arrays of zeros: what its result looks like before the values are there."""
    return _evaluate(function, [_blank(host) for host in hosts])


def _blank(host: Any) -> Any:
    is_array = isinstance(host, np.ndarray)
    return np.zeros(host.shape, host.dtype, layout(host)) if is_array else host


def _own(host: Any) -> NDArray:
    host = np.asarray(host)
    check_dtype(host.dtype)
    return host if host.base is None else host.copy(order="K")


# -------------------------------------------------------------------------------- small objects


class Flags:
    """How an array lies in memory."""

    def __init__(self, host: NDArray) -> None:
        self.c_contiguous = host.flags.c_contiguous
        self.f_contiguous = host.flags.f_contiguous
        self.owndata = host.flags.owndata


class MemoryPointer:
    """Where an array begins."""

    def __init__(self, host: NDArray, device: int) -> None:
        self.ptr = host.ctypes.data if host.size else 0
        self.device_id = device


class _Foreign:
    """Memory of another library, for NumPy to look at; keeps its owner alive."""

    def __init__(self, owner: Any, interface: dict[str, Any]) -> None:
        self._owner = owner
        self.__array_interface__ = {
            key: interface[key] for key in ("shape", "typestr", "data", "strides")
            if key in interface
        } | {"version": 3}  # fmt: skip


def from_foreign(owner: Any) -> ndarray:
    """A view of the memory that ``__cuda_array_interface__`` describes, without a copy."""
    interface = owner.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise ValueError("CUDA Array Interface with a mask is not supported")
    check_dtype(interface["typestr"])
    if interface.get("stream") is not None:
        wait_for_producer(interface["stream"])
    if 0 in interface["shape"]:
        return wrap(np.empty(interface["shape"], interface["typestr"]))
    return wrap(np.asarray(_Foreign(owner, interface)), block=Block(0))


# -------------------------------------------------------------------------------------- indices


def _index_parts(key: Any) -> tuple:
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        if isinstance(part, ndarray):
            if part.dtype.kind not in "biu":
                raise IndexError(
                    "arrays used as indices must be of integer or boolean type. "
                    f"(actual: {part.dtype.type})"
                )
        elif isinstance(part, (np.ndarray, list)):
            raise TypeError(f"{type(part)} as an index would be uploaded; make it a device array")
        elif isinstance(part, (bool, np.bool_)) or not (
            part is None or part is Ellipsis or isinstance(part, (slice, int, np.integer))
        ):
            raise IndexError(f"{part!r} is not a valid index")
    return parts if any(part is Ellipsis for part in parts) else (*parts, ...)


def _split_index(parts: tuple) -> tuple[list[ndarray], Callable[..., tuple]]:
    """The arrays of an index, and how to put the index together from their memory."""

    def assemble(*hosts: NDArray) -> tuple:
        remaining = iter(hosts)
        return tuple(next(remaining) if isinstance(p, ndarray) else p for p in parts)

    return [part for part in parts if isinstance(part, ndarray)], assemble


def _has_mask(arrays: list[ndarray]) -> bool:
    return any(array.dtype.kind == "b" for array in arrays)


def _refuse_duplicates(shape: tuple[int, ...], index: tuple) -> None:
    """Which of several values ends up in an element depends on the threads of a GPU."""
    chosen = np.arange(np.prod(shape, dtype=np.intp)).reshape(shape)[index].ravel()
    if len(np.unique(chosen)) < len(chosen):
        raise ValueError("different values are assigned to the same element")


# ------------------------------------------------------------------------------------ the array


class ndarray:  # noqa: N801
    """An array on an imaginary device."""

    __slots__ = ("__weakref__", "_block", "_device", "_host")
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape: Any, dtype: DTypeLike = float) -> None:
        array = allocate(shape, dtype)
        self._block, self._host, self._device = array._block, array._host, array._device

    def _view(self, host: NDArray) -> ndarray:
        view = wrap(host, self._block)
        view._device = self._device
        return view

    def __repr__(self) -> str:
        return f"<device {self._device}: {self._host!r}>"

    def __getattr__(self, name: str) -> Any:
        if name in LIBRARY_OF:
            raise AttributeError(missing_library(f"ndarray.{name}", LIBRARY_OF[name]))
        raise AttributeError(f"'ndarray' object of the stand-in has no attribute {name!r}")

    # What CuPy refuses.

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __matmul__(self, other: Any) -> ndarray:
        raise ImportError(missing_library("@", "cuBLAS"))

    __rmatmul__ = __matmul__

    # What NumPy's functions do with it.

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *operands: Any, out: tuple | None = None, **options: Any
    ) -> Any:
        known = ufunc in _OPERATOR_UFUNCS or ufunc.__name__ in NUMPY_FUNCTIONS
        if method != "__call__" or options or not known:
            return NotImplemented
        if ufunc in _COMPARISONS.values():
            # NumPy makes an array of its scalar before it compares; CuPy undoes that as well.
            operands = tuple(_scalar_again(operand) for operand in operands)
        return compute(ufunc, *operands) if out is None else compute_into(out[0], ufunc, *operands)

    def __array_function__(self, function: Callable, types: Any, args: tuple, kwargs: dict) -> Any:
        known = function.__module__ == "numpy" and function.__name__ in NUMPY_FUNCTIONS
        return NUMPY_FUNCTIONS[function.__name__](*args, **kwargs) if known else NotImplemented

    # What it looks like.

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @property
    def dtype(self) -> np.dtype:
        return self._host.dtype

    @property
    def ndim(self) -> int:
        return self._host.ndim

    @property
    def size(self) -> int:
        return self._host.size

    @property
    def itemsize(self) -> int:
        return self._host.itemsize

    @property
    def nbytes(self) -> int:
        return self._host.nbytes

    @property
    def strides(self) -> tuple[int, ...]:
        return self._host.strides

    @property
    def flags(self) -> Flags:
        return Flags(self._host)

    @property
    def device(self) -> Device:
        return Device(self._device)

    @property
    def data(self) -> MemoryPointer:
        return MemoryPointer(self._host, self._device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        stream = get_current_stream()
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr, False),
            "strides": None if self.flags.c_contiguous else self.strides,
            "version": 3,
            "stream": 1 if stream._is_null else stream.ptr,
        }

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    # Copies to the host.

    def get(
        self,
        stream: Stream | None = None,
        order: str = "C",
        out: NDArray | None = None,
        blocking: bool = True,
    ) -> NDArray:
        result = garbage(self.shape, self.dtype, order) if out is None else out
        if not isinstance(result, np.ndarray):
            raise TypeError("Only numpy.ndarray can be obtained from cupy.ndarray")
        if result.dtype != self.dtype or result.shape != self.shape:
            raise ValueError(f"out must be of dtype {self.dtype} and shape {self.shape}")
        counters.visit(self.nbytes)
        stream = get_current_stream() if stream is None else stream
        stream._do(lambda: np.copyto(result, self._host))
        if blocking:
            stream._finish()
        return result

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    # Copies on the device, and to it.

    def set(self, arr: NDArray, stream: Stream | None = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        upload(arr, self, stream)

    def fill(self, value: Any) -> None:
        if isinstance(value, ndarray) and not value.ndim:
            compute_into(self, np.positive, value, casting="unsafe")
            return
        if not np.isscalar(value) and np.shape(value):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        compute_into(self, lambda: np.full((), value, self.dtype))

    def copy(self, order: str = "C") -> ndarray:
        return compute(lambda host: host.copy(order), self)

    def astype(self, dtype: DTypeLike, order: str = "K", *, copy: bool = True) -> ndarray:
        dtype = check_dtype(dtype)
        if not copy and dtype == self.dtype:
            return self
        return compute(lambda host: host.astype(dtype, order=order), self)

    def view(self, dtype: DTypeLike | None = None) -> ndarray:
        return self._view(self._host.view(self.dtype if dtype is None else check_dtype(dtype)))

    # Shapes.

    @property
    def T(self) -> ndarray:  # noqa: N802
        return self._view(self._host.T)

    def transpose(self, *axes: Any) -> ndarray:
        return self._view(self._host.transpose(*axes))

    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        return rearrange(self, lambda host: host.reshape(*shape, order=order))

    def ravel(self, order: str = "C") -> ndarray:
        return rearrange(self, lambda host: host.ravel(order))

    # Indices.

    def __getitem__(self, key: Any) -> ndarray:
        parts = _index_parts(key)
        arrays, assemble = _split_index(parts)
        if not arrays:
            return self._view(self._host[parts])
        run = compute_on_visit if _has_mask(arrays) else compute
        return run(lambda host, *index: host[assemble(*index)], self, *arrays)

    def __setitem__(self, key: Any, value: Any) -> None:
        parts = _index_parts(key)
        arrays, assemble = _split_index(parts)
        if not arrays:
            self._view(self._host[parts])._assign(value)
            return
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be assigned")
        self._scatter(arrays, assemble, value)

    def _assign(self, value: Any) -> None:
        if isinstance(value, ndarray):
            compute_into(self, np.array, value, casting="unsafe")
        else:
            self.fill(value)

    def _scatter(self, arrays: list[ndarray], assemble: Callable, value: Any) -> None:
        host, new = unwrap(self), unwrap(value)
        indices = [unwrap(array) for array in arrays]

        def assign() -> None:
            index = assemble(*indices)
            if isinstance(new, np.ndarray) and new.ndim:
                _refuse_duplicates(host.shape, index)
            with np.errstate(all="ignore"):
                host[index] = new

        stream = get_current_stream()
        stream._do(assign)
        if _has_mask(arrays):
            stream._finish()
            counters.visit(np.dtype(np.intp).itemsize)

    def take(self, indices: ndarray, axis: int | None = None) -> ndarray:
        return compute(lambda host, index: host.take(index, axis), self, device_array(indices))

    def nonzero(self) -> tuple[ndarray, ...]:
        return compute_on_visit(np.nonzero, self)

    # Reductions and order: their results stay on the device.

    def max(self, axis: Any = None, *, keepdims: bool = False) -> ndarray:
        return compute(lambda host: host.max(axis, keepdims=keepdims), self)

    def min(self, axis: Any = None, *, keepdims: bool = False) -> ndarray:
        return compute(lambda host: host.min(axis, keepdims=keepdims), self)

    def any(self, axis: Any = None, *, keepdims: bool = False) -> ndarray:
        return compute(lambda host: host.any(axis, keepdims=keepdims), self)

    def all(self, axis: Any = None, *, keepdims: bool = False) -> ndarray:
        return compute(lambda host: host.all(axis, keepdims=keepdims), self)

    def sum(
        self, axis: Any = None, dtype: DTypeLike | None = None, *, keepdims: bool = False
    ) -> ndarray:
        return compute(lambda host: host.sum(axis, dtype, keepdims=keepdims), self)

    def cumsum(self, axis: int | None = None, dtype: DTypeLike | None = None) -> ndarray:
        return compute(lambda host: host.cumsum(axis, dtype), self)

    def argsort(self, axis: int = -1) -> ndarray:
        return compute(lambda host: host.argsort(axis, kind="stable"), self)

    def clip(self, min: Any = None, max: Any = None) -> ndarray:
        return clip(self, min, max)


def clip(array: ndarray, low: Any, high: Any) -> ndarray:
    """Limit values; a limit of None is none."""
    limits = [limit for limit in (low, high) if limit is not None]

    def evaluate(host: NDArray, *hosts: Any) -> NDArray:
        remaining = iter(hosts)
        return np.clip(host, *(None if v is None else next(remaining) for v in (low, high)))

    return compute(evaluate, device_array(array), *limits)


# ------------------------------------------------------------------------------------ operators


def _scalar_again(operand: Any) -> Any:
    is_scalar = isinstance(operand, np.ndarray) and not operand.ndim
    return operand[()] if is_scalar else operand


_BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide,
    "floordiv": np.floor_divide, "mod": np.remainder, "pow": np.power,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "lshift": np.left_shift, "rshift": np.right_shift,
}  # fmt: skip
_COMPARISONS = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip
_UNARY = {"neg": operator.neg, "pos": operator.pos, "abs": operator.abs, "invert": operator.invert}

_OPERATOR_UFUNCS = {*_BINARY.values(), *_COMPARISONS.values()}
"""With these a NumPy scalar on the left-hand side asks for the result."""


def _add_operators() -> None:
    for name, ufunc in _BINARY.items():
        setattr(ndarray, f"__{name}__", _binary(ufunc))
        setattr(ndarray, f"__r{name}__", _reflected(ufunc))
        setattr(ndarray, f"__i{name}__", _in_place(ufunc))
    for name, ufunc in _COMPARISONS.items():
        setattr(ndarray, f"__{name}__", _binary(ufunc))
    for name, function in _UNARY.items():
        setattr(ndarray, f"__{name}__", _unary(function))


def _binary(ufunc: np.ufunc) -> Callable:
    return lambda self, other: compute(ufunc, self, other)


def _reflected(ufunc: np.ufunc) -> Callable:
    return lambda self, other: compute(ufunc, other, self)


def _in_place(ufunc: np.ufunc) -> Callable:
    return lambda self, other: compute_into(self, ufunc, self, other)


def _unary(function: Callable) -> Callable:
    return lambda self: compute(function, self)


_add_operators()
