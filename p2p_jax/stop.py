"""Being asked to stop: SIGTERM and SIGINT end a process in good order within half a minute, a second one at once."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 25.0  # seconds until the process ends as it is; schedulers give about thirty
_SAME = 1.0  # seconds in which a signal is the same one again: some programs that pass it on send it twice


class Stopped(KeyboardInterrupt):
    """The process was asked to stop, and has done what there was to do."""

    def __init__(self, number: int, *, agreed: bool = False):
        """
        Args:
          number: of the signal.
          agreed: several processes stop together.
        """
        super().__init__(f'stopped by {signal.Signals(number).name}')
        self.code = 128 + number
        self.agreed = agreed


def _end(number: int, why: str) -> None:
    """Ends the process as it is, which no file or checkpoint minds."""
    os.write(2, f'{why}\n'.encode())
    os._exit(128 + number)


class Stop:
    """Listens for signals while the context lasts.

    At first a signal raises `Stopped` wherever the program stands. After `defer`, it is kept until it is asked for with
    `requested` or `check`, so that a step is finished and a state can be saved.

    Several processes must stop at the same step. There the runtime itself listens for SIGTERM, which is also a
    scheduler's notice, tells the other processes and agrees with them; a SIGINT is passed on to it. All of them must
    then ask equally often.
    """

    def __init__(self, sync_point: Callable[[int], bool] | None = None):
        """
        Args:
          sync_point: of several processes: whether the n-th question, counted from 1, is the one at which all stop;
            SIGTERM is then the runtime's, and never raises. None: one process.
        """
        self._sync_point = sync_point
        self._asked = 0
        self._number: int | None = None
        self._since = 0.0
        self._agreed = False
        self._deferred = False
        self._timer: threading.Timer | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> 'Stop':
        if threading.current_thread() is threading.main_thread():
            mine = SIGNALS if self._sync_point is None else (signal.SIGINT,)
            self._before = {number: signal.signal(number, self._receive) for number in mine}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.finishing()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            if time.monotonic() - self._since > _SAME:
                _end(number, 'a second signal: ended at once')
            return
        self._number, self._since = number, time.monotonic()
        why = f'not done after {_PATIENCE:.0f} s: ended as it is; the last checkpoint is whole'
        self._timer = threading.Timer(_PATIENCE, _end, (number, why))
        self._timer.daemon = True
        self._timer.start()
        if self._sync_point is not None:
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self._deferred:
            raise Stopped(number)

    def defer(self) -> None:
        """From now on a signal waits until it is asked for."""
        self._deferred = True

    def resume(self) -> None:
        """From now on a signal raises at once again, one that waits included."""
        self._deferred = False
        self.check()

    def requested(self) -> bool:
        """Whether to stop here; with several processes all get the same answer."""
        if self._sync_point is None:
            return self._number is not None
        if not self._agreed:
            self._asked += 1
            self._agreed = self._sync_point(self._asked)
            if self._agreed and threading.current_thread() is threading.main_thread():
                # The runtime has done its part; the next one ends at once.
                self._number = self._number or signal.SIGTERM
                self._since = time.monotonic()
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._receive)
        return self._agreed

    def check(self) -> None:
        """Raises `Stopped` if it is requested."""
        if self.requested():
            raise self.stopped()

    def stopped(self) -> Stopped:
        """Returns what to raise when all is done."""
        return Stopped(self._number or signal.SIGTERM, agreed=self._agreed)

    def finishing(self) -> None:
        """What follows, such as a checkpoint being written, may take the time that it takes."""
        if self._timer:
            self._timer.cancel()
