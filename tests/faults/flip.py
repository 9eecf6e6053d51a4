"""A bit that changes on its way."""

import threading


class Flip:
    """Flips a bit of what a proxy carries in one direction, once. large: of the first piece that holds
    data of a frame; else of whatever comes next, which may be HTTP/2's own."""

    def __init__(self, rng, proxy, direction, large):
        self.rng, self.direction, self.large = rng, direction, large
        self.done = threading.Event()
        self._lock = threading.Lock()
        proxy.spoil = self._spoil

    def _spoil(self, direction, data):
        with self._lock:
            if (direction != self.direction or self.done.is_set() or
                    (self.large and len(data) < 1000)):
                return data
            self.done.set()
        spoilt = bytearray(data)
        spoilt[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        return bytes(spoilt)
