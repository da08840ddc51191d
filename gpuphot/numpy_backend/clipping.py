"""Sigma-clipped statistics of many small samples at once.

Each sample is sorted once. Clipping then only moves the two ends of an interval, and the moments
of an interval are differences of cumulative sums. The sums are of deviations from the median and
run outwards from the middle, so that neither a bright sky nor a far outlier costs precision.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLIP_SIGMA = 3.0
MAX_REJECTIONS = 10


_quiet = np.errstate(invalid="ignore", divide="ignore", over="ignore")
"""Empty samples give NaN without a warning."""


class SortedSamples:
    """One sorted sample per row.

    Parameters
    ----------
    values : (n, T) float64 array
        Overwritten.
    keep : (n, T) bool array or None
        Members of the samples; None if all values are. Members must be finite.

    Attributes
    ----------
    first, last : (n,) integer arrays
        The sample of a row lies in the half-open interval [first, last) of its sorted values.
    reference : (n,) float64 array
        Median of each sample (0 for an empty one), which all statistics are relative to.
    """

    @_quiet
    def __init__(self, values: NDArray[np.float64], keep: NDArray[np.bool_] | None) -> None:
        n, size = values.shape
        if keep is None:
            self.first = np.zeros(n, np.intp)
            self.last = np.full(n, size, np.intp)
        else:
            # What is no member becomes -inf and +inf in turn: the sample stays in the middle.
            odd = np.cumsum(~keep, axis=1, dtype=np.uint8) & np.uint8(1)
            values = np.where(keep, values, np.where(odd.view(np.bool_), -np.inf, np.inf))
            n_out = size - np.count_nonzero(keep, axis=1)
            self.first = (n_out + 1) // 2
            self.last = size - n_out // 2
        values.sort(axis=1)
        self._values = values
        rows = np.arange(n)
        median = self._median(rows, self.first, self.last)
        self.reference = np.where(self.last > self.first, median, 0.0)
        values -= self.reference[:, None]
        self._sum = _outward_cumulative_sum(values)
        self._sum_of_squares = _outward_cumulative_sum(np.multiply(values, values))

    @_quiet
    def clip(
        self,
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
        """Reject values beyond 3 standard deviations of the median, at most 10 times.

        Returns
        -------
        first, last : (n,) integer arrays
            What survives.
        low, high : (n,) float64 arrays
            The bounds computed last, relative to `reference`: values equal to one survive.
        """
        first, last = self.first.copy(), self.last.copy()
        low, high = np.full((2, len(first)), np.nan)
        rows = np.flatnonzero(last > first)
        for _ in range(MAX_REJECTIONS):
            median, _, std = self._moments(rows, first[rows], last[rows])
            low[rows], high[rows] = median - CLIP_SIGMA * std, median + CLIP_SIGMA * std
            lowest = values_at(self._values, rows, first[rows])
            highest = values_at(self._values, rows, last[rows] - 1)
            rows = rows[(lowest < low[rows]) | (highest > high[rows])]
            if not len(rows):
                break
            first[rows], last[rows] = part_within(
                self._values, rows, first[rows], last[rows], low[rows], high[rows]
            )
        return first, last, low, high

    def between(
        self, low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The interval of each sample's values that lie in [low, high]."""
        return part_within(self._values, np.arange(len(low)), self.first, self.last, low, high)

    @_quiet
    def median_mean_std(
        self, first: NDArray[np.intp], last: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Median, mean and population standard deviation of the values in [first, last).

        Relative to `reference`; NaN for empty intervals.
        """
        return self._moments(np.arange(len(first)), first, last)

    def _moments(
        self, rows: NDArray[np.intp], first: NDArray[np.intp], last: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        n = last - first
        mean = (self._sum[rows, last] - self._sum[rows, first]) / n
        square = (self._sum_of_squares[rows, last] - self._sum_of_squares[rows, first]) / n
        std = np.sqrt(np.maximum(square - mean * mean, 0))
        return self._median(rows, first, last), mean, std

    def _median(
        self, rows: NDArray[np.intp], first: NDArray[np.intp], last: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        middle = first + last
        return 0.5 * (
            values_at(self._values, rows, (middle - 1) // 2)
            + values_at(self._values, rows, middle // 2)
        )


def values_at(
    ordered: NDArray[np.floating], rows: NDArray[np.intp], index: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Values (n,) of some rows; any value where the index is outside, as in empty intervals."""
    size = ordered.shape[1]
    index = rows * size + np.minimum(np.maximum(index, 0), size - 1)
    return ordered.ravel().take(index).astype(np.float64, copy=False)


def part_within(
    ordered: NDArray[np.floating],
    rows: NDArray[np.intp],
    first: NDArray[np.intp],
    last: NDArray[np.intp],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The part of the intervals [first, last) of sorted rows whose values lie in [low, high]."""
    rows = np.concatenate([rows, rows])
    # Both ends at once: the first value not below `low`, and the first one above `high`.
    bound = np.concatenate([low, np.nextafter(high, np.inf)])
    begin, end = np.concatenate([first, first]), np.concatenate([last, last])
    for _ in range(int((last - first).max(initial=0)).bit_length()):
        middle = (begin + end) // 2
        below = (values_at(ordered, rows, middle) < bound) & (begin < end)
        begin = np.where(below, middle + 1, begin)
        end = np.where(below, end, middle)
    return begin[: len(first)], begin[len(first) :]


def _outward_cumulative_sum(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums from the middle column outwards, of shape (n, T + 1).

    The sum over columns [i, j) is the difference of entries j and i.
    """
    n, size = values.shape
    middle = size // 2
    total = np.empty((n, size + 1))
    total[:, middle] = 0
    np.cumsum(values[:, middle:], axis=1, out=total[:, middle + 1 :])
    left = total[:, :middle][:, ::-1]
    np.cumsum(values[:, :middle][:, ::-1], axis=1, out=left)
    np.negative(left, out=left)
    return total
