"""Steps that run beside the caller, and what may be done meanwhile."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable


class StepHandle:
    """A step under way, or done.

    Its error is raised once: by `wait`, or by what next needs the optimizer. An error that nobody
    asked for is written to stderr when the handle is dropped, at the latest at exit.
    """

    def __init__(self, step: Callable[[], None] | None = None) -> None:
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if step is None:
            return
        self._thread = threading.Thread(target=self._run, args=(step,), name="adafactor step")
        _UNDER_WAY.add(self)
        self._thread.start()

    def done(self) -> bool:
        """Whether the step has been taken, or has failed."""
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> None:
        """Return when the step has been taken.

        Raises
        ------
        Exception
            What the step raised, the first time.
        """
        self._join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _join(self) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self, step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException as error:  # noqa: BLE001 (wait raises it)
            self._error = error

    def _report(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            print(f"a step_async that nobody waited for has failed: {error!r}", file=sys.stderr)

    def __del__(self) -> None:
        self._report()


_UNDER_WAY: weakref.WeakSet[StepHandle] = weakref.WeakSet()


def _finish_all() -> None:
    """Wait for every step: a child of fork would have no thread that ends it."""
    for handle in list(_UNDER_WAY):
        handle._join()


def _report_all() -> None:
    for handle in list(_UNDER_WAY):
        handle._join()
        handle._report()


os.register_at_fork(before=_finish_all)
atexit.register(_report_all)
