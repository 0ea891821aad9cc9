"""The daemon's process: signals, threads, children, and the one loop that waits for all of them."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from aquad.core.errors import AquadError, LockHeld, RepositoryRefused, SettingsInvalid
from aquad.core.process import reap
from aquad.daemon.keeper import Keeper, LockLost
from aquad.daemon.notifier import Notifier
from aquad.daemon.outside import Outside
from aquad.daemon.timer import Timer
from aquad.daemon.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from types import FrameType

    from aquad.daemon.keeper import Start
    from aquad.daemon.notifier import Send
    from aquad.observe.logs import Log
    from aquad.wiring import Wiring

LOOK_SECONDS = 60.0
"""The loop looks by itself when nothing wakes it, which is twice as long as the timer may be silent."""
WAITING_SECONDS = 5.0
"""So often it looks whether there is a repository by now."""
SILENT_LOOKS = 3
DRIFT_SECONDS = 5.0
"""By more the clock does not go wrong in a minute: it was set, or the machine slept."""


class Daemon:
    """`load` reads the settings again. Raises AquadError when somebody else listens where it should."""

    def __init__(self, wiring: Wiring, load: Callable[[], Wiring], start: Start, send: Send, log: Log) -> None:
        self._wiring = wiring
        self._load = load
        self._start = start
        self._log = log
        self._keeper: Keeper | None = None
        self._outside = Outside(wiring)
        self._notifier = Notifier(send, self._outside.counters, log, wiring.clock.now())
        self._wake_fd, self._ring_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._timer = Timer(self._ring)
        self._watchdog = Watchdog()
        self._stop = ""
        self._reload = self._bad_settings = False
        self._trouble = ""
        self._silent_looks = 0

    def run(self) -> int:
        """Until a signal ends it; returns the exit code. Raises LockHeld when another daemon keeps the repository."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._signalled)
        signal.set_wakeup_fd(self._ring_fd, warn_on_full_buffer=False)
        self._timer.start(self._wiring.rules())
        self._watchdog.start()
        self._log.info("daemon started", repository=str(self._wiring.settings.repository.path), pid=os.getpid())
        if self._outside.server is not None:
            self._log.info("listening", port=self._outside.server.port)
        drift = time.time() - time.monotonic()
        while not self._stop:
            self._watchdog.beat()
            if self._reload:
                self._read_settings()
            retry_at = self._tick()
            if retry_at is not None:
                self._timer.ring_at(retry_at, "retry")
            self._timer.ring_at(self._show_and_tell(), "alerts")
            if not self._stop:
                self._look()
            if abs(time.time() - time.monotonic() - drift) > DRIFT_SECONDS:
                drift = time.time() - time.monotonic()
                self._timer.change(self._wiring.rules())  # it sleeps by seconds
            self._check_threads()
        return self._end()

    def _tick(self) -> datetime | None:
        try:
            if self._keeper is None:
                self._keeper = Keeper(self._wiring, self._wiring.repository(), self._start, self._log)
                self._log.info("schedule begun", jobs=", ".join(self._wiring.rules()))
            retry_at = self._keeper.tick()
        except LockLost as error:
            self._stop = str(error)
            return None
        except LockHeld:
            if self._keeper is None:
                raise
            return None
        except AquadError as error:
            self._say_trouble(error)
            return None
        except OSError as error:
            self._say_trouble(RepositoryRefused(f"read the repository: {error}", "Is its disk there?"))
            return None
        if self._trouble:
            self._log.info("all is well again", after=self._trouble)
            self._trouble = ""
        return retry_at

    def _show_and_tell(self) -> datetime:
        """What is seen of us, and who has to hear what; when to look again."""
        of_daemon = {
            "trouble": self._trouble,
            "settings_valid": not self._bad_settings,
            "waiting": self._notifier.waiting,
        }
        self._outside.look(self._wiring, self._keeper, of_daemon)
        picture = self._outside.picture
        try:
            return self._notifier.tick(self._wiring, self._keeper, picture.overview if picture else None, self._trouble)
        except (AquadError, OSError) as error:  # the journal cannot be read; the next tick of the keeper says so too
            self._log.error("alerts are not looked at", error=str(error))
            return self._wiring.clock.now() + timedelta(minutes=1)

    def _say_trouble(self, error: AquadError) -> None:
        """Once, not every minute."""
        if str(error) != self._trouble:
            self._trouble = str(error)
            waiting = self._keeper is None and isinstance(error, RepositoryRefused)
            self._log.error(
                "waiting for the repository" if waiting else "cannot keep the schedule", error=self._trouble
            )

    def _read_settings(self) -> None:
        self._reload = False
        try:
            wiring = self._load()
            if wiring.settings.repository.path != self._wiring.settings.repository.path:
                raise SettingsInvalid("read settings: repository.path is another", "Start the daemon again for that.")
            if wiring.settings.web != self._wiring.settings.web:
                raise SettingsInvalid("read settings: web.listen is another", "Start the daemon again for that.")
            if self._keeper is not None:
                self._keeper.change(wiring, after_bad_ones=self._bad_settings)
        except AquadError as error:
            self._bad_settings = True
            text = f"settings not taken, the old ones stay: {error}"
            self._log.error(text)
            self._record(lambda keeper: keeper.alert("settings_invalid", "warning", text))
            return
        self._wiring, self._bad_settings = wiring, False
        self._timer.change(wiring.rules())
        self._log.info("settings read")

    def _look(self) -> None:
        if self._keeper is None or self._trouble:
            self._wait(WAITING_SECONDS)
        else:
            self._silent_looks = 0 if self._wait(LOOK_SECONDS) else self._silent_looks + 1

    def _wait(self, seconds: float) -> bool:
        """Whether something happened."""
        running = self._keeper.running if self._keeper else None
        fds = [self._wake_fd]
        if running and not self._trouble:  # what cannot be put away now would be ready for ever
            fds += [running.child.pidfd, running.child.report_fd]
        if self._notifier.child:
            fds += [self._notifier.child.pidfd, self._notifier.child.report_fd]
        ready, _, _ = select.select(fds, [], [], seconds)
        if self._wake_fd in ready:
            with suppress(BlockingIOError):  # harmless because all of it is read
                while os.read(self._wake_fd, 4096):
                    pass
        reap({child.pid for child in (running and running.child, self._notifier.child) if child})
        return bool(ready)

    def _check_threads(self) -> None:
        if not self._timer.is_alive() or self._silent_looks > SILENT_LOOKS:
            self._stop = "the timer's thread has died"
        elif not self._watchdog.is_alive():
            self._stop = "the watchdog's thread has died"
        elif self._outside.server is not None and not self._outside.server.is_alive():
            self._stop = "the web server's thread has died"

    def _end(self) -> int:
        """No new run. The one that is under way has half of the time to end by itself, then it is told to, then killed."""
        by_signal = self._stop.startswith("SIG")
        (self._log.info if by_signal else self._log.error)("daemon stops", reason=self._stop)
        end_at = time.monotonic() + self._wiring.stop_seconds()
        self._notifier.close(self._wiring, self._keeper)
        for number, until in ((None, self._wiring.stop_seconds() / 2), (signal.SIGTERM, 1.0), (signal.SIGKILL, 0.0)):
            running = self._keeper.running if self._keeper else None
            if running is None or running.child.poll() is not None:
                break
            if number is not None:
                running.child.signal(number)
            while running.child.poll() is None and (left := end_at - until - time.monotonic()) > 0:
                self._watchdog.beat()
                self._wait(min(left, LOOK_SECONDS))
                running.child.reports()
        self._record(lambda keeper: keeper.stopped(self._stop))
        self._timer.stop()
        self._log.info("daemon ended")
        return 0 if by_signal else 1

    def _record(self, write: Callable[[Keeper], None]) -> None:
        """What cannot be written into the journal stands in the log at least."""
        if self._keeper is not None:
            try:
                write(self._keeper)
            except AquadError as error:
                self._log.error("not recorded", error=str(error))

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._reload = True
        elif number != signal.SIGCHLD:
            self._stop = self._stop or signal.Signals(number).name

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # harmless because it is awake anyhow
            os.write(self._ring_fd, b"\0")
