"""The choice of the backend, and the reasons why a GPU may be of no use."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.table import Table

import gpuphot
from gpuphot.cupy_backend import probe

TABLE = Table({"x": [10.0], "y": [10.0]})
IMAGE = np.ones((20, 20))


class FakeArray:
    """An array that lives on a GPU, as far as anybody can tell from outside."""

    @property
    def __cuda_array_interface__(self):
        return {"shape": (20, 20), "typestr": "<f8", "version": 3}


def fake_cupy(n_devices=1, driver_error=None, compile_error=None, answer=(40, 41)):
    def get_device_count():
        if driver_error:
            raise RuntimeError(driver_error)
        return n_devices

    def raw_kernel(source, name):
        def launch(grid, block, arguments):
            if compile_error:
                raise RuntimeError(compile_error)
            arguments[0][:] = answer

        return launch

    runtime = SimpleNamespace(
        getDeviceCount=get_device_count,
        getDevice=lambda: 0,
        getDeviceProperties=lambda device: {"name": b"Imaginary GPU"},
    )
    return SimpleNamespace(
        __version__="14.2.0",
        cuda=SimpleNamespace(runtime=runtime),
        zeros=np.zeros,
        int32=np.int32,
        asnumpy=np.asarray,
        RawKernel=raw_kernel,
    )


MACHINES = {
    "no CuPy": (None, "CuPy is not installed"),
    "no driver": (
        fake_cupy(driver_error="cudaErrorInsufficientDriver: CUDA driver version is insufficient"),
        "No usable NVIDIA driver: cudaErrorInsufficientDriver",
    ),
    "no device": (fake_cupy(n_devices=0), "finds no GPU"),
    "no NVRTC": (
        fake_cupy(compile_error="Failure finding libnvrtc.so\nTried: ..."),
        "NVRTC may be missing",
    ),
    "wrong answer": (fake_cupy(answer=(0, 0)), r"returned \[0, 0\]"),
    "usable": (fake_cupy(), None),
}


@pytest.fixture(params=MACHINES)
def machine(request, monkeypatch):
    """A machine in one of the states above: the sentence that describes its problem."""
    cupy, problem = MACHINES[request.param]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.delenv("GPUPHOT_BACKEND", raising=False)
    probe.find_gpu.cache_clear()
    yield problem
    probe.find_gpu.cache_clear()


def test_probe_says_what_is_wrong_in_one_sentence(machine):
    gpu = probe.find_gpu()
    if machine is None:
        assert gpu == probe.Gpu("Imaginary GPU", None)
    else:
        assert gpu.device is None
        assert "\n" not in gpu.problem
        assert re.search(machine, gpu.problem)


@pytest.fixture
def machine_without_gpu(machine):
    if machine is None:
        pytest.skip("this machine has a GPU")
    return machine


def test_without_a_gpu_numpy_computes(machine_without_gpu):
    assert gpuphot.resolve_backend().name == "numpy"
    assert len(gpuphot.measure_objects(TABLE, IMAGE)) == 1


def test_without_a_gpu_a_forced_backend_says_why(machine_without_gpu):
    with pytest.raises(gpuphot.BackendError, match=machine_without_gpu):
        gpuphot.resolve_backend("cupy")
    with pytest.raises(gpuphot.BackendError, match=r"backend='cupy' was asked for, but no GPU"):
        gpuphot.measure_objects(TABLE, IMAGE, backend="cupy")


def test_without_a_gpu_a_device_array_cannot_be_measured(machine_without_gpu):
    for arguments in ({"image": FakeArray()}, {"image": IMAGE, "err": FakeArray()}):
        with pytest.raises(gpuphot.BackendError, match="an input array lives on a GPU, but"):
            gpuphot.measure_objects(TABLE, **arguments)


def test_environment_variable_chooses_and_an_argument_overrides_it(
    machine_without_gpu, monkeypatch
):
    monkeypatch.setenv("GPUPHOT_BACKEND", "numpy")
    assert gpuphot.resolve_backend().name == "numpy"
    monkeypatch.setenv("GPUPHOT_BACKEND", "cupy")
    with pytest.raises(gpuphot.BackendError, match="GPUPHOT_BACKEND=cupy is set"):
        gpuphot.resolve_backend()
    assert gpuphot.resolve_backend("numpy").name == "numpy"
    monkeypatch.setenv("GPUPHOT_BACKEND", "")
    assert gpuphot.resolve_backend().name == "numpy"


@pytest.mark.parametrize("backend", ["cupy"], indirect=True)
def test_with_a_gpu_cupy_computes_unless_told_otherwise(backend, monkeypatch):
    monkeypatch.delenv("GPUPHOT_BACKEND", raising=False)
    assert gpuphot.resolve_backend().name == "cupy"
    assert gpuphot.resolve_backend("numpy").name == "numpy"
    monkeypatch.setenv("GPUPHOT_BACKEND", "numpy")
    assert gpuphot.resolve_backend().name == "numpy"
    device_image = gpuphot.resolve_backend("cupy").primitives.to_device(IMAGE)
    assert gpuphot.resolve_backend(None, device_image).name == "cupy"
    with pytest.raises(TypeError, match="lives on a GPU: hand over NumPy arrays"):
        gpuphot.resolve_backend("numpy", device_image)


@pytest.mark.parametrize("name", ["cuda", "NumPy", "", 3, True])
def test_unknown_names_are_refused(name, monkeypatch):
    with pytest.raises(ValueError, match="backend must be one of numpy, cupy"):
        gpuphot.measure_objects(TABLE, IMAGE, backend=name)
    if isinstance(name, str) and name:
        monkeypatch.setenv("GPUPHOT_BACKEND", name)
        with pytest.raises(ValueError, match="environment variable GPUPHOT_BACKEND"):
            gpuphot.resolve_backend()
