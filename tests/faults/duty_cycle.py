"""A process that is ten times slower than it could be."""

import signal
import threading


class DutyCycle:
    """Lets a process run for a tenth of the time."""

    def __init__(self, process, period=0.1, share=0.1):
        self._process, self._run, self._stand = process, period * share, period * (1 - share)
        self.stops = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._cycle, daemon=True)
        self._thread.start()

    def _cycle(self):
        while self._process.status is None and not self._over.is_set():
            try:
                self._process.send(signal.SIGSTOP)
                self.stops += 1
                self._over.wait(self._stand)
                self._process.send(signal.SIGCONT)
            except (AssertionError, ProcessLookupError):  # it has ended
                return
            self._over.wait(self._run)

    def close(self):
        self._over.set()
        self._thread.join()
