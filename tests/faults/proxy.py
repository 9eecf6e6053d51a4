"""A TCP proxy between two processes of a test, which can break what it carries."""

import select
import socket
import threading
import time

CHUNK = 1 << 16


class Proxy:
    """Listens at `address` and carries every connection to `target`, as the fields below say, which
    may change at any time. A and B are the sides of the client and of the target."""

    def __init__(self, target=None):
        self.target = target
        # Bytes a second in each direction of `slow`; None: no limit.
        self.rate = None
        self.slow = {"to_target", "to_client"}
        # Directions in which nothing gets through, though connections stay: "to_target", "to_client".
        self.blocked = set()
        # A function of a direction and of bytes that are carried, which gives those that arrive.
        self.spoil = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self._connections = set()
        self._lock = threading.Lock()
        self._open = True
        threading.Thread(target=self._accept, daemon=True).start()

    def drop(self):
        """Breaks all connections there are; new ones are carried."""
        with self._lock:
            broken, self._connections = self._connections, set()
        for connection in broken:
            for end in connection:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self):
        self._open = False
        self._listener.close()
        self.drop()

    def _accept(self):
        while self._open:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client):
        host, port = self.target.rsplit(":", 1)
        try:
            target = socket.create_connection((host, int(port)), timeout=5)
        except OSError:
            client.close()
            return
        connection = (client, target)
        for end in connection:
            end.settimeout(None)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._connections.add(connection)
        threads = [threading.Thread(target=self._pump, args=way, daemon=True)
                   for way in ((client, target, "to_target"), (target, client, "to_client"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for end in connection:
            end.close()
        with self._lock:
            self._connections.discard(connection)

    def _pump(self, source, sink, direction):
        try:
            while True:
                if direction in self.blocked:
                    time.sleep(0.01)
                    continue
                # So that a block that begins now holds also what comes next.
                if not select.select([source], [], [], 0.05)[0]:
                    continue
                rate = self.rate if direction in self.slow else None
                data = source.recv(min(CHUNK, max(1, rate // 20)) if rate else CHUNK)
                if not data:
                    break
                while direction in self.blocked:
                    time.sleep(0.01)
                if rate:
                    time.sleep(len(data) / rate)
                spoil = self.spoil
                if spoil:
                    data = spoil(direction, data)
                sink.sendall(data)
        except (OSError, ValueError):
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
