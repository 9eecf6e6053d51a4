"""A gRPC client that asks and takes no answer: HTTP/2 by hand, with a window of no bytes."""

import socket
import struct

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _GOAWAY = 0, 1, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4


def _frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _header(name, value):
    # Literal, not indexed, not compressed.
    return b"".join([b"\0", bytes([len(name)]), name.encode(), bytes([len(value)]), value.encode()])


class SilentClient:
    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=10)
        self._authority = address
        self._next = 1
        self._got = b""
        self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, struct.pack(
            ">HI", _INITIAL_WINDOW_SIZE, 0)))

    def call(self, method, message=b"", end=True):
        """Begins a call, e.g. of "/moe.v1.ServerStatusService/GetServerStatus"; end: with all that
        it sends."""
        headers = b"".join(_header(name, value) for name, value in [
            (":method", "POST"), (":scheme", "http"), (":path", method),
            (":authority", self._authority), ("te", "trailers"),
            ("content-type", "application/grpc")])
        body = struct.pack(">BI", 0, len(message)) + message
        self._socket.sendall(_frame(_HEADERS, _END_HEADERS, self._next, headers) +
                             _frame(_DATA, _END_STREAM if end else 0, self._next, body))
        self._next += 2

    def begun(self):
        """How many answers have begun: their headers come all the same."""
        self._socket.settimeout(0.2)
        try:
            while True:
                got = self._socket.recv(1 << 16)
                if not got:
                    break
                self._got += got
        except socket.timeout:
            pass
        begun, at = 0, 0
        while at + 9 <= len(self._got):
            size = int.from_bytes(self._got[at:at + 3], "big")
            kind = self._got[at + 3]
            assert kind != _GOAWAY, self._got[at + 9:at + 9 + size]
            begun += kind == _HEADERS
            at += 9 + size
        return begun

    def close(self):
        self._socket.close()
