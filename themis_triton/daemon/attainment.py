"""Windows of the requests that ended."""

from __future__ import annotations

from collections import deque

from themis_triton.core.attainment import EndedRequests


class RollingCounts:
    """The requests of the last so many seconds, in cells of time, as a running sum."""

    def __init__(self, width_s: float, cell_s: float) -> None:
        self._width_s, self._cell_s = width_s, cell_s
        self._cells: deque[tuple[float, EndedRequests]] = deque()
        self._sum = EndedRequests()

    def add(self, at_s: float, ended: EndedRequests) -> None:
        """Add requests. A time before the newest cell counts in that."""
        start_s = at_s // self._cell_s * self._cell_s
        if self._cells and self._cells[-1][0] >= start_s:
            start_s, earlier = self._cells.pop()
            self._cells.append((start_s, earlier + ended))
        else:
            self._cells.append((start_s, ended))
        self._sum += ended

    def at(self, now_s: float) -> EndedRequests:
        """The sum over the window that ends now."""
        while self._cells and self._cells[0][0] <= now_s - self._width_s:
            self._sum -= self._cells.popleft()[1]
        if not self._cells:
            self._sum = EndedRequests()
        return self._sum


class PipelineWindows:
    """One pipeline's requests of the last minute, hour and day."""

    def __init__(self) -> None:
        self._windows = (RollingCounts(60.0, 1.0), RollingCounts(3600.0, 60.0), RollingCounts(86_400.0, 60.0))

    def add(self, at_s: float, ended: EndedRequests) -> None:
        """Add requests that ended."""
        for window in self._windows:
            window.add(at_s, ended)

    def at(self, now_s: float) -> tuple[EndedRequests, ...]:
        """The sums of the three windows."""
        return tuple(window.at(now_s) for window in self._windows)
