"""A TCP proxy on loopback that stops handing on bytes, and keeps both connections open: a peer that is stuck."""

import contextlib
import socket
import threading


class StallingProxy:
    """Use it as a context manager; `port` is where it listens. After `stall_after` bytes from the server nothing moves."""

    def __init__(self, host, port, *, stall_after):
        self._upstream = host, port
        self._left = stall_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        self.stalled = threading.Event()

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
                self._sockets += [client, server]
                threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source, target, counted):
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                if counted:
                    self._left -= len(block)
                    if self._left < 0:
                        self.stalled.set()
                        return
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)
