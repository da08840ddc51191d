"""Every rule that keeps the stand-in for CuPy honest, and a kernel that really runs."""

from __future__ import annotations

import gc
import importlib
import operator
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gpuphot.cupy_backend import probe

from . import standin
from .standin import counters, machine

OPTIONS = ("--std=c++17", "--fmad=false")

SOURCE = r"""
extern "C" __global__ void __launch_bounds__(32) add(
    const double* a, const double* b, double* out, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] + (b ? b[i] : 0.0);
}

extern "C" __global__ void __launch_bounds__(32) total(const double* a, double* out)
{
    extern __shared__ double part[];
    part[threadIdx.x] = a[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0;
        for (int i = 0; i < blockDim.x; ++i) sum += part[i];
        out[0] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(32) who_is_last(int* out)
{
    out[0] = threadIdx.x;
}
"""


@pytest.fixture(autouse=True)
def cp() -> Iterator[ModuleType]:
    with standin.installed() as cupy:
        yield cupy


@pytest.fixture
def a(cp: Any) -> Any:
    """A device array to try things with; the counters do not count its making."""
    array = cp.arange(4.0)
    counters.reset()
    return array


def host(array: Any) -> np.ndarray:
    """What a device array holds, read behind the stand-in's back."""
    return array._host


# ---- installing ----------------------------------------------------------------------------------


def test_is_there_only_while_it_is_installed(cp):
    assert importlib.import_module("cupy") is cp
    standin.uninstall()
    assert not standin.is_installed()
    assert not set(map(id, standin.MODULES.values())) & set(map(id, sys.modules.values()))
    assert sys.meta_path.count(standin.package._finder) == 0
    assert standin.install() is cp
    with standin.installed() as again:
        assert again is cp
    assert importlib.import_module("cupy") is cp


def test_installing_resets_everything(cp):
    machine.memory, machine.n_devices = 1, 1
    cp.cuda.Device(0).use()
    cp.cuda.Stream().use()
    counters.launches.append("something")
    standin.install()
    assert machine == standin.device.Machine()
    assert counters == standin.device.Counters()
    assert cp.cuda.get_current_stream() is cp.cuda.Stream.null


def test_the_package_does_not_hold_it():
    code = "import gpuphot, sys; sys.exit('tests' in sys.modules or 'cupy' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_the_probe_finds_a_usable_gpu():
    assert probe.find_gpu.__wrapped__() == probe.Gpu("stand-in for a GPU", None)


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["median", "cuda.MemoryAsyncPool", "ElementwiseKernel", "nancumsum"]
)
def test_names_that_are_not_on_the_list_do_not_exist(cp, name):
    with pytest.raises(AttributeError, match=r"not on the stand-in's list\. Check that"):
        operator.attrgetter(name)(cp)


@pytest.mark.parametrize("name", ["byteswap", "std", "_scatter_op", "__index__", "base"])
def test_methods_that_are_not_on_the_list_do_not_exist(a, name):
    with pytest.raises(AttributeError, match="has no attribute"):
        getattr(a, name)


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("matmul", "cuBLAS"), ("dot", "cuBLAS"), ("einsum", "cuBLAS"), ("tensordot", "cuBLAS"),
        ("linalg", "cuSOLVER"), ("random", "cuRAND"), ("fft", "cuFFT"),
    ],
)  # fmt: skip
def test_what_the_slim_install_lacks_is_refused(cp, name, library):
    with pytest.raises(AttributeError, match=rf"cupy.{name} needs .*{library}.* do not install"):
        getattr(cp, name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cupy.linalg", "needs cuBLAS and cuSOLVER"), ("cupy.random", "needs cuRAND"),
        ("cupy.fft", "needs cuFFT"), ("cupyx.scipy.sparse", "needs cuSPARSE"),
        ("cupyx.scipy.ndimage", "not on the stand-in's list"),
        ("cupyx.profiler", "not on the stand-in's list"),
        ("cupy.testing", "not on the stand-in's list"),
    ],
)  # fmt: skip
def test_modules_that_are_not_offered_cannot_be_imported(name, reason):
    with pytest.raises(ImportError, match=reason):
        importlib.import_module(name)


def test_from_import_says_why_too():
    with pytest.raises(ImportError, match="needs cuSPARSE"):
        from cupyx.scipy import sparse  # noqa: F401


def test_matrix_products_are_refused(a):
    for product in (lambda: a @ a, lambda: 2 @ a, lambda: operator.imatmul(a, a)):
        with pytest.raises(ImportError, match="cuBLAS"):
            product()
    with pytest.raises(AttributeError, match="cuBLAS"):
        a.dot(a)
    for function in (np.dot, np.matmul, np.linalg.norm):
        with pytest.raises(TypeError):
            function(a, a)


# ---- host and device do not mix ------------------------------------------------------------------


def test_device_array_is_no_numpy_array(cp, a):
    assert not isinstance(a, np.ndarray)
    assert not issubclass(cp.ndarray, np.ndarray)


@pytest.mark.parametrize(
    "convert",
    [
        np.asarray, np.array, np.ma.asarray, np.ascontiguousarray,
        lambda a: np.zeros(4).__setitem__(slice(None), a),
        lambda a: np.testing.assert_array_equal(a, a),
        lambda a: np.stack([np.zeros(4), a]),
    ],
)  # fmt: skip
def test_device_array_does_not_become_a_host_array_by_itself(a, convert):
    with pytest.raises(TypeError):
        convert(a)
    assert counters.device_to_host == 0


@pytest.mark.parametrize(
    "mix",
    [
        lambda cp, a, n: a + n,
        lambda cp, a, n: n + a,
        lambda cp, a, n: a < n,
        lambda cp, a, n: n == a,
        lambda cp, a, n: operator.iadd(a, n),
        lambda cp, a, n: operator.iadd(n, a),
        lambda cp, a, n: np.add(a, n),
        lambda cp, a, n: a[n > 1],
        lambda cp, a, n: a[n.astype(int)],
        lambda cp, a, n: a.take(n.astype(int)),
        lambda cp, a, n: n[a],
        lambda cp, a, n: cp.sqrt(n),
        lambda cp, a, n: cp.maximum(a, n),
        lambda cp, a, n: cp.where(n > 1, a, a),
        lambda cp, a, n: cp.where(a > 1, a, n),
        lambda cp, a, n: cp.clip(a, n, None),
        lambda cp, a, n: cp.sum(n),
        lambda cp, a, n: cp.any(n),
        lambda cp, a, n: cp.flatnonzero(n),
        lambda cp, a, n: cp.unique(n),
        lambda cp, a, n: cp.cumsum(n),
        lambda cp, a, n: cp.argsort(n),
        lambda cp, a, n: cp.lexsort(np.stack([n, n])),
        lambda cp, a, n: cp.searchsorted(a, n),
        lambda cp, a, n: cp.stack([a, n]),
        lambda cp, a, n: cp.concatenate([a, n]),
        lambda cp, a, n: cp.broadcast_to(n, (2, 4)),
        lambda cp, a, n: cp.zeros_like(n),
        lambda cp, a, n: cp.full(4, n),
        lambda cp, a, n: cp.ascontiguousarray(n),
    ],
)
def test_host_arrays_are_refused_as_operands(cp, a, mix):
    with pytest.raises(TypeError):
        mix(cp, a, np.arange(4.0))
    assert counters.host_to_device == 0


@pytest.mark.parametrize(
    "assign",
    [
        lambda a, n: a.__setitem__(slice(None), n),
        lambda a, n: a.__setitem__(a > 1, n),
        lambda a, n: a.__setitem__(slice(None), [0, 1, 2, 3]),
        lambda a, n: a.fill(n),
    ],
)
def test_host_arrays_are_not_assigned(a, assign):
    with pytest.raises(ValueError, match="non-scalar"):
        assign(a, np.arange(4.0))


def test_sequences_are_no_operands(cp, a):
    for mix in (
        lambda: a * [1, 2, 3, 4],
        lambda: cp.sqrt([1.0]),
        lambda: a[[0, 1]],
        lambda: cp.array([a, a]),
        lambda: cp.sum([1.0]),
    ):
        with pytest.raises(TypeError):
            mix()


def test_set_takes_what_fits_only(a):
    a.set(np.ones(4))
    assert host(a).tolist() == [1, 1, 1, 1]
    with pytest.raises(TypeError, match=r"Only numpy\.ndarray"):
        a.set([0, 0, 0, 0])
    with pytest.raises(TypeError, match="float32 array cannot be set"):
        a.set(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="Shape mismatch"):
        a.set(np.zeros(3))


def test_device_arrays_are_no_indices_for_python(cp):
    i = cp.arange(3)[1]
    for use in (lambda: [1, 2, 3][i], lambda: range(i), lambda: cp.arange(4)[i:]):
        with pytest.raises(TypeError):
            use()


@pytest.mark.parametrize("dtype", [object, "U3", "M8[s]", "V4", ">f8", np.longdouble])
def test_dtypes_without_a_gpu_equivalent_are_refused(cp, a, dtype):
    with pytest.raises(ValueError, match="Unsupported dtype"):
        cp.empty(3, dtype)
    with pytest.raises(ValueError, match="Unsupported dtype"):
        a.astype(dtype)


def test_unknown_attributes_cannot_be_set_and_arrays_have_no_hash(a):
    with pytest.raises(AttributeError):
        a.note = "x"
    with pytest.raises(TypeError, match="unhashable"):
        hash(a)


# ---- results stay on the device ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sum", "max", "min", "any", "all", "count_nonzero"])
def test_reductions_stay_on_the_device(cp, a, name):
    results = [getattr(cp, name)(a), getattr(cp, name)(a, axis=0)]
    results += [getattr(a, name)()] if name != "count_nonzero" else []
    for result in results:
        assert isinstance(result, cp.ndarray)
        assert result.shape == ()
        assert host(result) == getattr(np, name)(host(a))
    assert counters.device_to_host == 0


def test_elements_stay_on_the_device(cp, a):
    assert isinstance(a[2], cp.ndarray)
    assert isinstance(a[2] * 2, cp.ndarray)
    assert all(isinstance(element, cp.ndarray) for element in a)


def test_numpy_functions_and_scalars_give_device_arrays(cp, a):
    for result in (
        np.sqrt(a), np.sum(a), np.where(a > 1, a, 0.0), np.float64(2) * a, np.float64(2) < a,
        a * np.float32(2), np.zeros_like(a), np.clip(a, 1, 2),
    ):  # fmt: skip
        assert isinstance(result, cp.ndarray)
    assert np.ndim(a) == 1
    assert np.shape(a) == (4,)
    for function in (np.median, np.sinc, np.sin):
        with pytest.raises(TypeError):
            function(a)


OPERATORS = (
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod,
    operator.pow, operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne,
)  # fmt: skip


@pytest.mark.parametrize("operation", OPERATORS)
def test_operators_compute_what_numpy_does(cp, operation):
    x, y = np.array([0.5, -1.5, 3.0]), np.array([2.0, 4.0, 3.0])
    dx, dy = cp.asarray(x), cp.asarray(y)
    for result, expected in (
        (operation(dx, dy), operation(x, y)),
        (operation(dx, 2), operation(x, 2)),
        (operation(2, dy), operation(2, y)),
    ):
        np.testing.assert_array_equal(host(result), expected)
        assert result.dtype == expected.dtype


def test_in_place_operators_keep_the_memory(cp):
    bits = cp.asarray(np.array([1, 2, 4], np.uint8))
    view = bits[1:]
    bits |= 8
    bits &= 12
    assert host(view).tolist() == [8, 12]
    assert host(~(bits > 9)).tolist() == [True, True, False]
    with pytest.raises(TypeError, match="Cannot cast"):
        bits *= 0.5
    with pytest.raises(TypeError, match="Cannot cast"):
        bits += cp.arange(3.0)
    values = cp.arange(3.0)
    with pytest.raises(ValueError, match="broadcast"):
        values += cp.ones((2, 3))


def test_functions_compute_what_numpy_does(cp):
    x = np.array([3.0, np.nan, -1.0, 0.0, 3.0, np.inf])
    d = cp.asarray(x)
    with np.errstate(all="ignore"):
        for name in (
            "isfinite", "isnan", "sqrt", "log10", "logical_not", "rint", "floor", "ceil", "abs",
            "any", "all", "sum", "max", "min", "cumsum", "flatnonzero", "unique", "zeros_like",
        ):  # fmt: skip
            result, expected = getattr(cp, name)(d), getattr(np, name)(x)
            np.testing.assert_array_equal(host(result), expected)
            assert result.dtype == expected.dtype
    np.testing.assert_array_equal(host(cp.argsort(d)), np.argsort(x, kind="stable"))
    np.testing.assert_array_equal(host(cp.lexsort(cp.stack([d, d]))), np.lexsort([x, x]))
    np.testing.assert_array_equal(host(cp.clip(d, None, 1)), np.clip(x, None, 1))
    np.testing.assert_array_equal(host(cp.where(d > 0, d, cp.nan)), np.where(x > 0, x, np.nan))
    np.testing.assert_array_equal(host(cp.nonzero(d)[0]), np.nonzero(x)[0])
    _, counts = cp.unique(d, return_counts=True)
    assert host(counts).sum() == len(x)
    knots, points = cp.arange(4.0), cp.asarray(np.array([0.5, 3.0]))
    assert host(cp.searchsorted(knots, points, side="right")).tolist() == [1, 4]
    assert host(cp.concatenate([knots, points])).tolist() == [0, 1, 2, 3, 0.5, 3]


def test_out_is_written_to(cp, a):
    out = cp.empty(4)
    assert cp.sqrt(a, out=out) is out
    assert host(out).tolist() == np.sqrt(np.arange(4.0)).tolist()
    with pytest.raises(TypeError, match="Cannot cast"):
        cp.sqrt(a, out=cp.empty(4, cp.int32))
    with pytest.raises(TypeError, match=r"cupy.ndarray is needed"):
        cp.sqrt(a, out=np.empty(4))


# ---- indices -------------------------------------------------------------------------------------


def test_indices_read_what_numpy_reads(cp):
    n = np.arange(12.0).reshape(3, 4)
    d = cp.asarray(n)
    rows = cp.asarray(np.array([2, 0]))
    for index, expected in (
        (1, n[1]), ((1, 2), n[1, 2]), ((slice(None), None), n[:, None]), (..., n),
        ((..., 1), n[..., 1]), (slice(0, 3, 2), n[::2]), (np.int64(1), n[1]),
        (rows, n[[2, 0]]), ((rows, rows), n[[2, 0], [2, 0]]), ((rows, 1), n[[2, 0], 1]),
        (d > 5, n[n > 5]), ((d[:, 1] > 4, 0), n[n[:, 1] > 4, 0]),
    ):  # fmt: skip
        np.testing.assert_array_equal(host(d[index]), expected)


def test_slices_are_views_and_chosen_elements_are_not(cp):
    d = cp.zeros((3, 4))
    d[1:, ::2][0] = 7
    d[1][1] = 5
    d[cp.asarray([0])][:] = 9
    assert host(d).tolist() == [[0, 0, 0, 0], [7, 5, 7, 0], [0, 0, 0, 0]]


def test_assignment_with_arrays_as_indices(cp, a):
    a[a > 1.5] = -1
    a[cp.asarray([1, 0])] = cp.asarray([10.0, 20.0])
    a[3] += 0.5
    assert host(a).tolist() == [20, 10, -1, -0.5]
    whole = cp.zeros(4, cp.int64)
    whole[:] = a
    assert host(whole).tolist() == [20, 10, -1, 0]


def test_different_values_for_one_element_are_refused(cp, a):
    twice = cp.asarray([1, 1])
    a[twice] = 3.0
    with pytest.raises(ValueError, match="different values"):
        a[twice] = cp.asarray([1.0, 2.0])


def test_indices_that_cupy_would_wrap_or_round_are_refused(cp, a):
    for index in (1.5, True, cp.asarray([4]), cp.asarray([0.0]), 4, (0, 0), cp.asarray([True])):
        with pytest.raises(IndexError):
            a[index]


# ---- memory --------------------------------------------------------------------------------------


def test_fresh_memory_is_poisoned(cp, a):
    for fresh in (cp.empty((2, 3)), cp.empty_like(a), cp.ndarray(3), cp.empty(3, order="F")):
        assert np.isnan(host(fresh)).all()
    assert (host(cp.empty(3, cp.uint8)) == 0xFF).all()
    assert (host(cp.empty(3, cp.int32)) == -1).all()


def test_pool_counts_bytes(cp):
    pool = cp.get_default_memory_pool()
    gc.collect()
    pool.free_all_blocks()
    used, free_before = pool.used_bytes(), cp.cuda.Device().mem_info[0]
    array = cp.zeros(1000)
    view = array[10:]
    assert pool.used_bytes() - used == 8192
    assert cp.cuda.Device().mem_info[0] == free_before - 8192
    del array
    assert pool.used_bytes() - used == 8192, "the view still needs the memory"
    del view
    assert pool.used_bytes() == used
    assert pool.free_bytes() == 8192
    assert pool.total_bytes() == used + 8192
    pool.free_all_blocks()
    assert pool.free_bytes() == 0
    assert cp.cuda.Device().mem_info[0] == free_before


def test_memory_ends_at_the_limit(cp):
    pool = cp.get_default_memory_pool()
    pool.set_limit(pool.used_bytes() + 4096)
    kept = cp.zeros(256)
    with pytest.raises(cp.cuda.memory.OutOfMemoryError, match="Out of memory allocating 4,096"):
        cp.zeros(512)
    del kept
    assert cp.zeros(512).size == 512
    pool.set_limit(size=0)
    assert cp.zeros(4096).size == 4096
    with pytest.raises(cp.cuda.memory.OutOfMemoryError):
        cp.zeros(2 * machine.memory // 8)


def test_arrays_of_another_device_are_refused(cp, a):
    with cp.cuda.Device(1) as other:
        b = cp.arange(4.0)
        assert b.device == other
        for use in (lambda: a + 1, lambda: b + a, lambda: a.__setitem__(0, 1)):
            with pytest.raises(ValueError, match="array device = 0 while current = 1"):
                use()
    assert a.device == cp.cuda.Device(0)
    with pytest.raises(ValueError, match="array device = 1 while current = 0"):
        cp.sqrt(b)
    assert b.get().tolist() == [0, 1, 2, 3]
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="invalid device ordinal"):
        cp.cuda.Device(2)


# ---- copies --------------------------------------------------------------------------------------


def test_copies_to_the_device_are_counted(cp):
    n = np.arange(4.0)
    counters.reset()
    d = cp.asarray(n)
    n[0] = 99
    assert host(d)[0] == 0, "the device has memory of its own"
    assert (counters.host_to_device, counters.bytes_to_device) == (1, 32)
    assert cp.asarray(d) is d
    assert cp.ascontiguousarray(d) is d
    assert cp.array(d) is not d
    cp.zeros(3), cp.arange(3), d + 1, cp.full(3, 2.0)
    assert cp.asarray(2.5).shape == ()
    assert counters.host_to_device == 1
    d.set(n)
    cp.asarray([1.0, 2.0])
    assert counters.host_to_device == 3


@pytest.mark.parametrize(
    "visit",
    [
        lambda cp, a: a.get(), lambda cp, a: cp.asnumpy(a), lambda cp, a: a.tolist(),
        lambda cp, a: int(a[1]), lambda cp, a: float(a[1]), lambda cp, a: bool(a[1]),
        lambda cp, a: a[1].item(), lambda cp, a: a[a > 1], lambda cp, a: cp.nonzero(a),
        lambda cp, a: cp.flatnonzero(a), lambda cp, a: cp.unique(a),
        lambda cp, a: a.__setitem__(a > 1, 0), lambda cp, a: cp.where(a > 1),
        lambda cp, a: max(a[0], a[1]), lambda cp, a: 1 if (a > 1).any() else 0,
    ],
)  # fmt: skip
def test_whatever_makes_the_host_wait_is_counted(cp, a, visit):
    visit(cp, a)
    assert counters.device_to_host == 1


def test_copies_on_the_device_have_the_layout_asked_for(cp):
    assert cp.asarray(np.arange(6.0).reshape(2, 3).T).flags.c_contiguous
    f = cp.array(np.arange(6.0).reshape(2, 3).T)
    assert f.flags.f_contiguous
    assert cp.asarray(f) is f
    for c in (cp.ascontiguousarray(f), cp.array(f, order="C"), cp.asarray(f, order="C"), f.copy()):
        assert c.flags.c_contiguous
        np.testing.assert_array_equal(host(c), host(f))


def test_sizes_of_copies_are_counted(cp, a):
    cp.asnumpy(a)
    assert counters.bytes_to_host == 32


def test_big_endian_arrays_are_converted(cp):
    d = cp.asarray(np.arange(3, dtype=">i2"))
    assert d.dtype == np.int16
    assert host(d).tolist() == [0, 1, 2]


def test_asnumpy_leaves_host_arrays_alone(cp):
    n = np.arange(3)
    assert cp.asnumpy(n) is n
    assert counters.device_to_host == 0


class ForeignArray:
    """Memory on the device that another library owns."""

    def __init__(self, memory: np.ndarray, **entries: Any) -> None:
        self.memory = memory
        self.__cuda_array_interface__ = {
            "shape": memory.shape,
            "typestr": memory.dtype.str,
            "data": (memory.ctypes.data, False),
            "strides": memory.strides,
            "version": 3,
            **entries,
        }


def test_foreign_device_arrays_are_used_where_they_are(cp):
    memory = np.arange(12.0).reshape(3, 4)
    for part in (memory, memory[:, ::2], memory[1]):
        used = cp.get_default_memory_pool().used_bytes()
        d = cp.asarray(ForeignArray(part))
        assert isinstance(d, cp.ndarray)
        assert cp.get_default_memory_pool().used_bytes() == used
        d += 1
        np.testing.assert_array_equal(host(d), part)
    assert memory[1, 0] == 7
    assert cp.asarray(ForeignArray(memory), dtype=cp.float32).dtype == np.float32
    assert cp.array(ForeignArray(memory)).data.ptr != memory.ctypes.data
    assert (counters.host_to_device, counters.device_to_host) == (0, 0)
    assert cp.asarray(ForeignArray(np.empty((0, 4)))).shape == (0, 4)


def test_foreign_arrays_that_cupy_refuses(cp):
    with pytest.raises(ValueError, match="mask is not supported"):
        cp.asarray(ForeignArray(np.arange(3.0), mask=object()))
    with pytest.raises(ValueError, match="Unsupported dtype"):
        cp.asarray(ForeignArray(np.arange(3, dtype=">f8")))


def test_foreign_arrays_are_waited_for(cp):
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        made = cp.ones(3)
        foreign = ForeignArray(host(made), **{"stream": stream.ptr})
        assert made.__cuda_array_interface__["stream"] == stream.ptr
    assert host(cp.asarray(foreign)).tolist() == [1, 1, 1]
    assert counters.synchronisations == 1


def test_device_arrays_describe_themselves(cp, a):
    interface = a[1:].__cuda_array_interface__
    assert interface["data"] == (a.data.ptr + 8, False)
    assert interface["strides"] is None
    assert cp.zeros((3, 4)).T.__cuda_array_interface__["strides"] == (8, 32)


# ---- streams -------------------------------------------------------------------------------------


def test_work_on_a_stream_waits_until_somebody_waits_for_it(cp, a):
    stream = cp.cuda.Stream(non_blocking=True)
    last = cp.arange(3, 4)
    with stream:
        b = a + 1
        b[0] = 5
        c = cp.sqrt(b)
        c *= 2
        d = cp.asarray(np.ones(3))
        z = cp.zeros(4)
        z[last] = 7
        with pytest.raises(ValueError, match="broadcast"):
            z += cp.ones((2, 4))
    for array in (b, c, d, z):
        assert np.isnan(host(array)).all()
        assert np.isnan(cp.asnumpy(array)).all(), "read on a stream that does not wait for it"
    assert not stream.done
    stream.synchronize()
    assert stream.done
    assert host(b).tolist() == [5, 2, 3, 4]
    np.testing.assert_array_equal(host(c), 2 * np.sqrt(host(b)))
    assert host(d).tolist() == [1, 1, 1]
    assert host(z).tolist() == [0, 0, 0, 7]


def test_uploads_take_the_values_of_their_time(cp):
    n = np.zeros(3)
    with cp.cuda.Stream() as stream:
        d, e = cp.asarray(n), cp.empty(3)
        e.set(n)
        n[:] = 9
        stream.synchronize()
    assert host(d).tolist() == host(e).tolist() == [0, 0, 0]


def test_reading_waits_for_the_stream_it_reads_on(cp, a):
    with cp.cuda.Stream() as stream:
        b = a + 1
        assert cp.asnumpy(b).tolist() == [1, 2, 3, 4]
        c = b * 2
    assert c.get(stream=stream).tolist() == [2, 4, 6, 8]
    assert counters.synchronisations == 0
    with stream:
        assert float((c + 1)[0]) == 3
        assert host(c[c > 3]).tolist() == [4, 6, 8]
        c[c > 3] = 0
        assert stream.done, "the host had to wait for the number of elements"


def test_asynchronous_reading_gives_nothing_before_it_is_waited_for(cp, a):
    stream = cp.cuda.Stream()
    out = np.zeros(4)
    a.get(stream=stream, out=out, blocking=False)
    late = a.get(stream=stream, blocking=False)
    assert out.tolist() == [0, 0, 0, 0]
    assert np.isnan(late).all()
    stream.synchronize()
    assert out.tolist() == late.tolist() == [0, 1, 2, 3]


def test_events_wait_for_what_was_before_them(cp, a):
    first, second = cp.cuda.Stream(), cp.cuda.Stream()
    with first:
        b = a + 1
        event = first.record()
        c = a + 2
    with second:
        second.wait_event(event)
        d = b * 2
        assert cp.asnumpy(d).tolist() == [2, 4, 6, 8]
    assert event.done
    assert np.isnan(host(c)).all()
    later = cp.cuda.Event()
    later.record(first)
    later.synchronize()
    assert host(c).tolist() == [2, 3, 4, 5]
    assert counters.synchronisations == 1


def test_devices_wait_for_their_streams(cp, a):
    with cp.cuda.Stream():
        b = a + 1
    with cp.cuda.Device(1):
        cp.cuda.Device().synchronize()
        assert np.isnan(host(b)).all()
    cp.cuda.Device(0).synchronize()
    assert host(b).tolist() == [1, 2, 3, 4]
    assert counters.synchronisations == 2


def test_streams_belong_to_their_device(cp):
    stream = cp.cuda.Stream()
    with stream, cp.cuda.Device(1):
        assert cp.cuda.get_current_stream() is cp.cuda.Stream.null
        assert cp.cuda.get_current_stream(0) is stream
        with pytest.raises(RuntimeError, match="stream of device 0"):
            stream.use()


def test_nested_streams_are_left_in_order(cp):
    with cp.cuda.Stream() as outer:
        with cp.cuda.Stream() as inner:
            assert cp.cuda.get_current_stream() is inner
            with outer:
                assert cp.cuda.get_current_stream() is outer
            assert cp.cuda.get_current_stream() is inner
        assert cp.cuda.get_current_stream() is outer
    assert cp.cuda.get_current_stream() is cp.cuda.Stream.null


# ---- kernels -------------------------------------------------------------------------------------


@pytest.fixture
def module(cp) -> Any:
    return cp.RawModule(code=SOURCE, options=OPTIONS)


def test_kernels_run(cp, a, module):
    out = cp.empty(4)
    add = module.get_function("add")
    add((1,), (32,), (a, a, out, np.int32(4)))
    assert host(out).tolist() == [0, 2, 4, 6]
    add((1,), (32,), (a, None, out, 3))
    assert host(out).tolist() == [0, 1, 2, 6]
    cp.RawKernel(SOURCE, "add", OPTIONS)((1,), (2,), (a, a, out, np.int32(2)))
    assert host(out).tolist() == [0, 2, 2, 6]
    assert counters.launches == ["add"] * 3
    assert (counters.device_to_host, counters.synchronisations) == (0, 0)


def test_kernels_get_the_shared_memory_they_ask_for(cp, module):
    out = cp.empty(1)
    module.get_function("total")((1,), (32,), (cp.ones(32), out), shared_mem=256)
    assert host(out) == 32


def test_kernels_wait_on_a_stream_too(cp, a, module):
    with cp.cuda.Stream(non_blocking=True) as stream:
        out = cp.empty(4)
        module.get_function("add")((1,), (32,), (a, a, out, np.int32(4)))
    assert counters.launches == ["add"]
    assert np.isnan(out.get()).all()
    stream.synchronize()
    assert host(out).tolist() == [0, 2, 4, 6]


def test_kernel_arguments_that_would_be_misread_are_refused(cp, a, module):
    add = module.get_function("add")
    out = cp.empty(4)
    n = np.int32(4)
    strided = cp.arange(8.0)[::2]
    with cp.cuda.Device(1):
        elsewhere = cp.arange(4.0)
    for arguments, error in (
        ((a, host(a), out, n), TypeError),
        ((a, strided, out, n), ValueError),
        ((a, elsewhere, out, n), ValueError),
        ((a, a.astype(cp.float32), out, n), TypeError),
        ((a, a, out, np.int64(4)), TypeError),
        ((a, a, out, 4.0), TypeError),
        ((a, a, out), TypeError),
        ((a, [1.0], out, n), TypeError),
        ((a, a, 3, n), TypeError),
    ):
        with pytest.raises(error):
            add((1,), (32,), arguments)
    assert np.isnan(host(out)).all()


@pytest.mark.parametrize(
    ("grid", "block", "error"),
    [
        ((0,), (32,), "CUDADriverError"),
        ((1,), (0,), "CUDADriverError"),
        ((1, 65536), (32,), "CUDADriverError"),
        ((1,), (1025,), "CUDADriverError"),
        ((1,), (32, 33), "CUDADriverError"),
    ],
)
def test_launches_that_a_gpu_refuses(cp, a, module, grid, block, error):
    with pytest.raises(getattr(cp.cuda.driver, error), match="invalid argument"):
        module.get_function("add")(grid, block, (a, a, a, np.int32(4)))


def test_launches_that_cupy_refuses(cp, a, module):
    add = module.get_function("add")
    arguments = (a, a, a, np.int32(4))
    for grid, block in ((1, (32,)), ([1], (32,)), ((1.0,), (32,)), ((1,), 32)):
        with pytest.raises(TypeError, match="must be a tuple"):
            add(grid, block, arguments)
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="49160 bytes of shared memory"):
        add((1,), (32,), arguments, shared_mem=48 * 1024 + 8)
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="invalid argument"):
        add.max_dynamic_shared_size_bytes = 1 << 20


def test_modules_that_cupy_refuses(cp, module):
    with pytest.raises(TypeError, match="expected tuple, got list"):
        cp.RawModule(code=SOURCE, options=list(OPTIONS))
    with pytest.raises(TypeError, match="code"):
        cp.RawModule()
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="named symbol not found"):
        module.get_function("subtract")
    with pytest.raises(cp.cuda.compiler.CompileException, match="subtract"):
        cp.RawModule(code=SOURCE, name_expressions=["subtract"]).compile()
    broken = cp.RawModule(code=SOURCE.replace("double sum", "dubble sum"), options=OPTIONS)
    with pytest.raises(cp.cuda.compiler.CompileException, match="dubble"):
        broken.compile()


def test_threads_run_in_the_order_asked_for(cp, module):
    out = cp.empty(1, cp.int32)
    last = {}
    for order in ("forward", "reverse"):
        machine.schedule = {"order": order}
        module.get_function("who_is_last")((1,), (32,), (out,))
        last[order] = int(out[0])
    assert last == {"forward": 31, "reverse": 0}


def test_races_are_found_in_the_race_variant(cp, module):
    out = cp.empty(1, cp.int32)
    machine.variant = "race"
    module.get_function("add")((1,), (32,), (cp.ones(4), None, cp.empty(4), np.int32(4)))
    assert standin.races() == []
    module.get_function("who_is_last")((1,), (32,), (out,))
    assert "who_is_last" in standin.races()[0]
