"""SIGINT, SIGTERM and SIGHUP: the first one ends the demo in order, and nothing is left behind.

A signal is only noted, and raised where `allowed()` says so: while the demo waits or reads. Making a directory, starting
a process, stopping it and removing things are never cut short, so nothing is made that nobody remembers to remove.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aquad.core.errors import Terminated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Interruption:
    def __init__(self) -> None:
        self._number = 0
        self._open = False

    def listen(self) -> None:
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # `nohup make demo` means it
            signal.signal(number, self._arrived)

    def exit_code(self) -> int:
        """0 if none came."""
        return {0: 0, signal.SIGINT: 130}.get(self._number, 143)

    def ignore(self) -> None:
        """All is done: Python would let a late one change the exit code while it ends."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A signal raises KeyboardInterrupt or Terminated within the block; one that came before it, at its beginning."""
        self._open = True
        try:
            if self._number:
                self._raise()
            yield
        finally:
            self._open = False

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        self._number = self._number or number
        if self._open:
            self._raise()

    def _raise(self) -> None:
        self._open = False  # an impatient second one must not cut short what the first one began
        raise KeyboardInterrupt if self._number == signal.SIGINT else Terminated


_interruption = _Interruption()
listen = _interruption.listen
exit_code = _interruption.exit_code
ignore = _interruption.ignore
allowed = _interruption.allowed
