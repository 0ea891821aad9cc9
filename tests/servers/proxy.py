"""A TCP proxy on loopback that does to a connection what networks and peers do: ends it, garbles it, slows it, forgets it."""

import contextlib
import select
import socket
import struct
import threading
from typing import Literal, NamedTuple

BLOCK = 65536
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
GARBAGE = b"HTTP/1.1 502 Bad Gateway\r\n\r\n"
Peer = Literal["client", "server"]


class Toxic(NamedTuple):
    """What is done to what goes `towards` a peer, once `after` bytes of all connections together have gone there.

    `refuse`: nobody listens. `reset at connect`: RST before a byte. `reset`: RST. `end`: FIN. `stall`: nothing moves any
    more, and everything stays open. `garbage`: from there on other bytes, of the same number. `rate`: `amount` bytes a
    second. `latency`: each block comes `amount` seconds late.
    """

    kind: Literal["refuse", "reset at connect", "reset", "end", "stall", "garbage", "rate", "latency"]
    after: int = 0
    towards: Peer = "client"
    amount: float = 0.0


class ToxicProxy:
    """Use it as a context manager; `port` is where it listens, `passed` the bytes that were sent towards each peer."""

    def __init__(self, host, port, toxic=None):
        self._upstream = host, port
        self._toxic = toxic
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        if toxic is None or toxic.kind != "refuse":
            self._listener.listen()
        self.port = self._listener.getsockname()[1]
        self.passed: dict[Peer, int] = {"client": 0, "server": 0}
        self.struck = threading.Event()
        """The toxic has done something."""
        self._closing = threading.Event()
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self._closing.set()
        # The first wakes up the thread that accepts: after it there are no new connections.
        _shut_down(self._listener)
        self._threads[0].join()
        for one in self._sockets:
            _shut_down(one)
        for thread in self._threads[1:]:
            thread.join()
        for one in self._sockets:
            one.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._toxic and self._toxic.kind == "reset at connect":
                    self.struck.set()
                    _reset(client)
                    continue
                self._sockets.append(client)
                server = socket.create_connection(self._upstream)
                self._sockets.append(server)
                thread = threading.Thread(target=self._connection, args=(client, server))
                self._threads.append(thread)
                thread.start()

    def _connection(self, client, server):
        """One thread for both directions: a socket that another thread reads would not be reset by closing it."""
        ways = {client: (server, "server"), server: (client, "client")}
        try:
            while ways:
                for source in select.select(list(ways), [], [])[0]:
                    target, towards = ways[source]
                    block = source.recv(BLOCK)
                    if not block:
                        target.shutdown(socket.SHUT_WR)
                        del ways[source]
                    elif not self._hand_on(block, target, towards):
                        self._finish(client, server)
                        return
        except OSError:
            # One peer is gone: the other hears of it, as it would without a proxy.
            _shut_down(client)
            _shut_down(server)

    def _hand_on(self, block, target, towards):
        """Whether the connection goes on."""
        before, self.passed[towards] = self.passed[towards], self.passed[towards] + len(block)
        toxic = self._toxic
        if toxic is None or towards != toxic.towards or self.passed[towards] < toxic.after:
            target.sendall(block)
            return True
        clean = max(0, toxic.after - before)
        target.sendall(block[:clean])
        self.struck.set()
        rest = block[clean:]
        if toxic.kind not in {"garbage", "rate", "latency"}:
            return False
        if toxic.kind == "garbage":
            rest = (GARBAGE * (len(rest) // len(GARBAGE) + 1))[: len(rest)]
        else:
            self._closing.wait(len(rest) / toxic.amount if toxic.kind == "rate" else toxic.amount)
        target.sendall(rest)
        return True

    def _finish(self, client, server):
        for one in (client, server):
            if self._toxic.kind == "reset":
                _reset(one)
            elif self._toxic.kind == "end":
                one.shutdown(socket.SHUT_RDWR)


def _reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    connection.close()


def _shut_down(connection):
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
