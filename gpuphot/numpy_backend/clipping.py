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
        self._rows = np.arange(n)
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
        self.reference = np.zeros(n)
        self.reference = np.where(self.count > 0, self._median(self.first, self.last), 0.0)
        values -= self.reference[:, None]
        self._sum = _outward_cumulative_sum(values)
        self._sum_of_squares = _outward_cumulative_sum(np.multiply(values, values))

    @property
    def count(self) -> NDArray[np.intp]:
        """Number of members of each sample."""
        return self.last - self.first

    @_quiet
    def median_mean_std(
        self, first: NDArray[np.intp], last: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Median, mean and population standard deviation of the values in [first, last).

        Relative to `reference`; NaN for empty intervals.
        """
        n, rows = last - first, self._rows
        mean = (self._sum[rows, last] - self._sum[rows, first]) / n
        square = (self._sum_of_squares[rows, last] - self._sum_of_squares[rows, first]) / n
        std = np.sqrt(np.maximum(square - mean * mean, 0))
        return self._median(first, last), mean, std

    def _median(self, first: NDArray[np.intp], last: NDArray[np.intp]) -> NDArray[np.float64]:
        top = self._values.shape[1] - 1
        middle = first + last
        low = self._values[self._rows, np.clip((middle - 1) // 2, 0, top)]
        high = self._values[self._rows, np.clip(middle // 2, 0, top)]
        return 0.5 * (low + high)

    def _index_of(self, bound: NDArray[np.float64]) -> NDArray[np.intp]:
        """First member of each sample that is not below `bound`, by bisection."""
        low, high = self.first, self.last
        for _ in range(self._values.shape[1].bit_length()):
            middle = (low + high) // 2
            open_ = low < high
            below = open_ & (self._values[self._rows, np.where(open_, middle, 0)] < bound)
            low = np.where(below, middle + 1, low)
            high = np.where(below | ~open_, high, middle)
        return low

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
        low = np.full(len(first), np.nan)
        high = np.full(len(first), np.nan)
        active = self.count > 0
        for _ in range(MAX_REJECTIONS):
            median, _, std = self.median_mean_std(first, last)
            low = np.where(active, median - CLIP_SIGMA * std, low)
            high = np.where(active, median + CLIP_SIGMA * std, high)
            begin, end = self.between(low, high)
            begin, end = np.maximum(begin, first), np.minimum(end, last)
            active = active & ((begin > first) | (end < last))
            if not active.any():
                break
            first, last = np.where(active, begin, first), np.where(active, end, last)
        return first, last, low, high

    def between(
        self, low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The interval of each sample's values that lie in [low, high]."""
        return self._index_of(low), self._index_of(np.nextafter(high, np.inf))


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
