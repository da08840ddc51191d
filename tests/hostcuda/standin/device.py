"""The imaginary machine: its devices, their memory, and the streams on which work waits."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Work = Callable[[], Any]

BLOCK = 512
"""CuPy's memory pool hands out multiples of this many bytes."""


@dataclass
class Machine:
    """What the stand-in pretends to be; tests may change it, `reset` puts it back.

    Attributes
    ----------
    n_devices : int
        Two, so that code which forgets on which device it is gets caught.
    memory : int
        Bytes of each device.
    compute_capability : str
    variant : str
        How kernels are built for the CPU, see `HostModule`.
    schedule : dict
        In which order their threads run, see `HostModule.schedule`; empty for its default.
    """

    n_devices: int = 2
    memory: int = 8 << 30
    compute_capability: str = "90"
    variant: str = "plain"
    schedule: dict[str, Any] = field(default_factory=dict)

    def reset(self) -> None:
        """Back to the defaults."""
        self.__init__()


@dataclass
class Counters:
    """What was done since the last `reset`.

    Attributes
    ----------
    launches : list of str
        Names of the kernels that were launched, in this order.
    host_to_device, device_to_host : int
        Copies between host and device. Whatever makes the host wait for a value counts as a copy
        to the host: ``int(a)``, ``if a:``, ``a[mask]``, ``nonzero(a)``.
    bytes_to_device, bytes_to_host : int
        Their sizes.
    synchronisations : int
        Explicit waiting for a stream, an event or a device.
    """

    launches: list[str] = field(default_factory=list)
    host_to_device: int = 0
    device_to_host: int = 0
    bytes_to_device: int = 0
    bytes_to_host: int = 0
    synchronisations: int = 0

    def reset(self) -> None:
        """Start counting anew."""
        self.__init__()

    def upload(self, n_bytes: int) -> None:
        """Note a copy to the device."""
        self.host_to_device += 1
        self.bytes_to_device += n_bytes

    def visit(self, n_bytes: int) -> None:
        """Note a copy to the host."""
        self.device_to_host += 1
        self.bytes_to_host += n_bytes


machine = Machine()
counters = Counters()


class _Current(threading.local):
    """The device that each thread uses, and the stream on each device."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, Stream] = {}


_current = _Current()


class CUDARuntimeError(RuntimeError):
    """An error of the CUDA runtime."""


class CUDADriverError(RuntimeError):
    """An error of the CUDA driver."""


class OutOfMemoryError(MemoryError):
    """A device has no memory left, or the pool has reached its limit."""


# ------------------------------------------------------------------------------------ streams


class Stream:
    """A queue of work.

    Nothing on it is done until it is waited for, however long that takes: whoever forgets to
    wait reads what `empty` left in the memory. Only the null stream works at once. It does not
    wait for the others, as CUDA's legacy one would, because with per-thread default streams, or
    for streams that are `non_blocking`, it does not on a GPU either.
    """

    null: Stream

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: int | None = None,
    ) -> None:
        self._pending: deque[Work] = deque()
        self._previous: list[Stream] = []
        self._is_null = null or ptds
        self.ptr = 0 if self._is_null else id(self)
        self.device_id = -1 if self._is_null else _current.device
        if not self._is_null:
            _streams.add(self)

    def __enter__(self) -> Stream:
        self._previous.append(get_current_stream())
        return self.use()

    def __exit__(self, *error: object) -> None:
        self._previous.pop().use()

    def use(self) -> Stream:
        if self.device_id not in (-1, _current.device):
            raise RuntimeError(
                f"a stream of device {self.device_id} cannot be used on device {_current.device}"
            )
        _current.streams[_current.device] = self
        return self

    @property
    def done(self) -> bool:
        return not self._pending

    def synchronize(self) -> None:
        counters.synchronisations += 1
        self._finish()

    def record(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        self._do(event._reach)

    def _do(self, work: Work) -> None:
        """Do the work, or put it into the queue."""
        if self._is_null:
            work()
        else:
            self._pending.append(work)
            _busy.add(self)

    def _finish(self) -> None:
        while self._pending:
            self._next()

    def _next(self) -> None:
        self._pending.popleft()()
        if not self._pending:
            _busy.discard(self)


_streams: weakref.WeakSet[Stream] = weakref.WeakSet()
_busy: set[Stream] = set()  # a stream that nobody holds any more still does its work
Stream.null = Stream(null=True)


def get_current_stream(device_id: int = -1) -> Stream:
    """Stream that this thread uses on a device, the current one by default."""
    device = _current.device if device_id == -1 else device_id
    return _current.streams.get(device, Stream.null)


def wait_for_producer(ptr: int) -> None:
    """Wait for the stream that another library says its array is made on."""
    for stream in list(_streams):
        if stream.ptr == ptr:
            stream.synchronize()


class Event:
    """A mark in the queue of a stream."""

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        self._stream: Stream | None = None
        self._marks_ahead = 0

    def record(self, stream: Stream | None = None) -> None:
        self._stream = get_current_stream() if stream is None else stream
        self._marks_ahead += 1
        self._stream._do(self._pass)

    @property
    def done(self) -> bool:
        return not self._marks_ahead

    def synchronize(self) -> None:
        counters.synchronisations += 1
        self._reach()

    def _pass(self) -> None:
        self._marks_ahead -= 1

    def _reach(self) -> None:
        """Do what its stream has to do before the mark."""
        while self._marks_ahead and self._stream is not None:
            self._stream._next()


# ------------------------------------------------------------------------------------ devices


class Device:
    """One of the imaginary devices; as a context, the one that is used inside."""

    __hash__ = None

    def __init__(self, device: int | Device | None = None) -> None:
        self.id = _current.device if device is None else int(device)
        _check_device(self.id)
        self._previous: list[int] = []

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> Device:
        self._previous.append(_current.device)
        _current.device = self.id
        return self

    def __exit__(self, *error: object) -> None:
        _current.device = self._previous.pop()

    def use(self) -> None:
        _current.device = self.id

    def synchronize(self) -> None:
        counters.synchronisations += 1
        for stream in list(_busy):
            if stream.device_id == self.id:
                stream._finish()

    @property
    def compute_capability(self) -> str:
        return machine.compute_capability

    @property
    def mem_info(self) -> tuple[int, int]:
        return machine.memory - _pool._usage(self.id).total, machine.memory

    @property
    def attributes(self) -> dict[str, int]:
        return {
            "ComputeCapabilityMajor": int(machine.compute_capability[:-1]),
            "ComputeCapabilityMinor": int(machine.compute_capability[-1]),
            "MaxBlocksPerMultiprocessor": 32,
            "MaxSharedMemoryPerBlock": 48 << 10,
            "MaxSharedMemoryPerBlockOptin": MAX_SHARED_MEMORY,
            "MaxThreadsPerBlock": 1024,
            "MultiProcessorCount": 132,
            "WarpSize": 32,
        }


MAX_SHARED_MEMORY = 227 << 10
"""Bytes of shared memory that a block may have if the kernel asks for it beforehand."""


def current_device() -> int:
    """Number of the device that this thread uses."""
    return _current.device


def _check_device(device: int) -> None:
    if not 0 <= device < machine.n_devices:
        raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")


# --------------------------------------------------------------------- the runtime's functions


def getDeviceCount() -> int:  # noqa: N802
    return machine.n_devices


def getDevice() -> int:  # noqa: N802
    return _current.device


def setDevice(device: int) -> None:  # noqa: N802
    Device(device).use()


def getDeviceProperties(device: int) -> dict[str, Any]:  # noqa: N802
    attributes = Device(device).attributes
    return {
        "name": b"stand-in for a GPU",
        "totalGlobalMem": machine.memory,
        "major": attributes["ComputeCapabilityMajor"],
        "minor": attributes["ComputeCapabilityMinor"],
        "multiProcessorCount": attributes["MultiProcessorCount"],
        "warpSize": attributes["WarpSize"],
    }


def driverGetVersion() -> int:  # noqa: N802
    return 13000


def runtimeGetVersion() -> int:  # noqa: N802
    return 13000


def deviceSynchronize() -> None:  # noqa: N802
    Device().synchronize()


def memGetInfo() -> tuple[int, int]:  # noqa: N802
    return Device().mem_info


# ------------------------------------------------------------------------------------- memory


@dataclass
class _Usage:
    """Bytes of one device that are in use, and those that the pool keeps for later."""

    used: int = 0
    free: int = 0
    limit: int = 0

    @property
    def total(self) -> int:
        return self.used + self.free


class MemoryPool:
    """Counts bytes and refuses when there are none left; the memory itself is NumPy's."""

    def __init__(self) -> None:
        self._usages: dict[int, _Usage] = {}

    def _usage(self, device: int | None = None) -> _Usage:
        return self._usages.setdefault(_current.device if device is None else device, _Usage())

    def _take(self, size: int) -> None:
        usage = self._usage()
        limit = min(usage.limit or machine.memory, machine.memory)
        reused = min(usage.free, size)
        if usage.total - reused + size > limit:
            usage.free = reused
        if usage.total - reused + size > limit:
            raise OutOfMemoryError(
                f"Out of memory allocating {size:,} bytes (allocated so far: {usage.total:,} "
                f"bytes, limit set to: {limit:,} bytes)."
            )
        usage.free -= reused
        usage.used += size

    def _give_back(self, device: int, size: int) -> None:
        usage = self._usage(device)
        usage.used -= size
        usage.free += size

    def used_bytes(self) -> int:
        return self._usage().used

    def free_bytes(self) -> int:
        return self._usage().free

    def total_bytes(self) -> int:
        return self._usage().total

    def free_all_blocks(self, stream: Stream | None = None) -> None:
        self._usage().free = 0

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if (size is None) == (fraction is None):
            raise ValueError("set_limit takes either a size or a fraction")
        self._usage().limit = int(machine.memory * fraction) if size is None else size

    def get_limit(self) -> int:
        return self._usage().limit


_pool = MemoryPool()


def get_default_memory_pool() -> MemoryPool:
    """The pool from which all arrays take their memory."""
    return _pool


class Block:
    """Memory taken from the pool for as long as this object lives."""

    def __init__(self, n_bytes: int) -> None:
        self._size = 0
        size = -(-n_bytes // BLOCK) * BLOCK
        self._device = _current.device
        _pool._take(size)
        self._size = size

    def __del__(self) -> None:
        _pool._give_back(self._device, self._size)


def reset() -> None:
    """Forget settings, counts and waiting work. Arrays that are in use keep their memory."""
    machine.reset()
    counters.reset()
    for stream in _busy:
        stream._pending.clear()
    _busy.clear()
    _current.device = 0
    _current.streams.clear()
    for usage in _pool._usages.values():
        usage.free = usage.limit = 0
