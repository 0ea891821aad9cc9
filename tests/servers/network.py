"""A PostgreSQL server behind a network of its own, that can lose every packet in silence, or be slow. Needs root.

The network is a namespace without a name and a pair of virtual cards. It ends with this process, however that ends.
"""

import ctypes
import ipaddress
import os
import secrets
import shutil
import subprocess
from contextlib import ExitStack, contextmanager

from tests.servers import debian
from tests.servers.postgres import Server

NAMESPACE = "/proc/thread-self/ns/net"
NEW_NETWORK = 0x40000000
"""CLONE_NEWNET of <sched.h>."""
HERE, THERE = "02:00:00:00:00:01", "02:00:00:00:00:02"
"""Hardware addresses of the two cards: nobody else is on their wire."""
NOBODY = "02:00:00:00:00:03"
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def private_network():
    """A Network; nothing of it is left afterwards. Raises Unavailable where `ip` is not to be had."""
    with ExitStack() as stack:
        home = _current(stack)
        _succeed(_libc.unshare, NEW_NETWORK)
        try:
            away = _current(stack)
        finally:
            _succeed(_libc.setns, home, NEW_NETWORK)
        network = Network(home, away)
        stack.callback(network.close)
        network.connect()
        yield network


class Network:
    """`here` and `there` are the two addresses. Each method may be called from any thread."""

    def __init__(self, home, away):
        # Of the four million networks of four addresses each in 10.0.0.0/8: other test processes have others.
        first = ipaddress.IPv4Address("10.0.0.0") + 4 * secrets.randbelow(1 << 22)
        self.here, self.there = str(first + 1), str(first + 2)
        self._card = f"aquad{secrets.token_hex(5)}"
        self._home, self._away = home, away

    @contextmanager
    def inside(self):
        """What this thread opens or starts meanwhile is on the far side."""
        _succeed(_libc.setns, self._away, NEW_NETWORK)
        try:
            yield
        finally:
            _succeed(_libc.setns, self._home, NEW_NETWORK)

    def connect(self):
        away = f"/proc/{os.getpid()}/fd/{self._away}"
        peer = ("peer", "name", "far", "address", THERE, "netns", away)
        _run("ip", "link", "add", self._card, "address", HERE, "type", "veth", *peer)
        for side, card, address in self._sides():
            with side():
                _run("ip", "address", "add", f"{address}/30", "dev", card)
                _run("ip", "link", "set", card, "up")
        self.heal()

    def cut(self):
        """From now on packets are lost both ways, and nobody is told: each side sends to a card that is not there."""
        self._neighbours(NOBODY, NOBODY)

    def heal(self):
        """No packet is lost, and none is slow."""
        self._neighbours(THERE, HERE)
        for side, card, _ in self._sides():
            with side():
                _run("tc", "qdisc", "replace", "dev", card, "root", "pfifo")

    def slow(self, bytes_per_second):
        """Each way for itself."""
        for side, card, _ in self._sides():
            with side():
                rate = ("rate", f"{bytes_per_second}bps", "burst", "16kb", "latency", "500ms")
                _run("tc", "qdisc", "replace", "dev", card, "root", "tbf", *rate)

    def close(self):
        """Else the kernel removes the cards when it finds the time."""
        if os.path.exists(f"/sys/class/net/{self._card}"):
            _run("ip", "link", "delete", self._card)

    def _sides(self):
        return (_stay, self._card, self.here), (self.inside, "far", self.there)

    def _neighbours(self, of_here, of_there):
        for (side, card, _), peer, hardware in zip(
            self._sides(), (self.there, self.here), (of_here, of_there), strict=True
        ):
            with side():
                _run("ip", "neighbour", "replace", peer, "lladdr", hardware, "dev", card, "nud", "permanent")


class FarServer(Server):
    """A server on the far side. Its private socket is at hand whatever the network does."""

    def __init__(self, network):
        super().__init__(16)
        self._network = network
        self.host = network.there
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(f"listen_addresses='{network.there}'\n")
        with (self.data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {network.here}/32 scram-sha-256\n")

    def start(self):
        with self._network.inside():
            return super().start()


@contextmanager
def _stay():
    yield


def _current(stack):
    """The namespace that this thread is in."""
    descriptor = os.open(NAMESPACE, os.O_RDONLY)
    stack.callback(os.close, descriptor)
    return descriptor


def _succeed(function, *arguments):
    if function(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}: {os.strerror(number)}")


def _run(tool, *arguments):
    installed = shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    command = [installed or debian.file("iproute2", tool), *arguments]
    environment = None if installed else debian.environment("iproute2")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tool} {' '.join(arguments)}: {done.stderr.strip()}")
