"""SIGTERM, by which schedulers warn a process some seconds before they kill it."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Iterator, Optional, Type

from ipu_vit.distributed import ALONE, Processes


class Terminated(BaseException):
    """The process has been asked to end; like KeyboardInterrupt, no error of anybody's."""


class Termination:
    """As a context, turns the first SIGTERM into Terminated; others, as a job's processes may get several, do nothing.

    Nor do they after it: whoever passes the signal on may be late, and the end that was asked for is no failure.
    Inside `deferred`, Terminated waits until that is left, and `agreed` tells that it does. Of several
    processes, all end if one is asked to; so there they have to agree, and outside of `deferred` go on to the end.
    Signals only ever reach a process's main thread; in another one this does nothing.
    """

    def __init__(self, processes: Processes = ALONE) -> None:
        self.heard = False
        self._processes = processes
        self._deferred = False
        self._agreed = False

    def __enter__(self) -> Termination:
        self._in_charge = threading.current_thread() is threading.main_thread()
        if self._in_charge:
            self._previous = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> None:
        if self._in_charge:
            signal.signal(signal.SIGTERM, signal.SIG_IGN if self.heard else self._previous)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """What has to be finished first; errors in it go before."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.agreed():
            raise Terminated

    def agreed(self, heard: bool = False) -> bool:
        """Whether all processes are to end, because one of them has heard SIGTERM, or of it in another way."""
        self._agreed = self._agreed or self._processes.any(self.heard or heard)
        if self._agreed:
            self.heard = True
        return self._agreed

    def _hear(self, number: int, frame: Optional[FrameType]) -> None:
        heard, self.heard = self.heard, True
        if not heard and not self._deferred and self._processes.size == 1:
            raise Terminated
