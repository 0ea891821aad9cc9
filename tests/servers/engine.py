"""A real Docker Engine of its own, with Compose, from Debian's packages. Nothing is installed on the machine.

Packages, the base image and the Engine's images are kept in `.cache/docker` of the checkout. Sockets and what runs lie in a
short directory of their own, because a unix socket's path has at most 108 bytes.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.servers.debian import Unavailable, _ran, environment, unpacked

CACHE = Path(__file__).parents[2] / ".cache" / "docker"
NEWER = "trixie"
"""The release whose Compose is taken: Debian 12 has only the first version."""
PACKAGES = "docker.io", "containerd", "runc", "iptables"
BASE = "local/debian:bookworm"
BRIDGE = Path("/sys/class/net/docker0")
READY_SECONDS = 60


def reason_missing() -> str:
    """Why no Engine can run here; empty where it can."""
    if os.geteuid():
        return "a Docker Engine needs root"
    if BRIDGE.exists():
        return "a docker0 is there already: another Engine runs, or `ip link delete docker0`"
    if not shutil.which("apt-get"):
        return "the Engine comes from Debian's packages, and there is no apt-get"
    try:
        for package in PACKAGES:
            unpacked(package)
        _compose_plugin()
    except Unavailable as error:
        return f"the Engine's packages cannot be had: {error}"
    return ""


class Engine:
    """Use it as a context manager. `address` is for DOCKER_HOST, `socket` the path in it."""

    def __init__(self):
        self._place = Path(tempfile.mkdtemp(prefix="aqe"))
        self.socket = self._place / "docker.sock"
        self.address = f"unix://{self.socket}"
        self._exec, self._pid = self._place / "exec", self._place / "dockerd.pid"
        self._process = None
        self._makes_bridge = not BRIDGE.exists()
        self._forwarded = Path("/proc/sys/net/ipv4/ip_forward").read_text()

    def __enter__(self):
        try:
            self.start()
            self._clear()
            self._have_base()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def environment(self):
        """For docker, Compose and the SDK."""
        paths = [
            str(unpacked(package) / "usr" / kind)
            for package in ("docker.io", "containerd", "runc", "iptables")
            for kind in ("sbin", "bin")
        ]
        return {
            **environment("iptables"),
            "PATH": ":".join([str(_iptables()), *paths, os.environ["PATH"]]),
            "XTABLES_LIBDIR": str(next(unpacked("iptables").rglob("xtables"))),
            "DOCKER_HOST": self.address,
            "DOCKER_CONFIG": str(_compose_plugin().parents[1]),
            "DOCKER_BUILDKIT": "0",
        }

    def start(self):
        """Start it, also after `kill`: what the killed one left behind would make the next wait in vain."""
        self._pid.unlink(missing_ok=True)
        (self._exec / "containerd" / "containerd.pid").unlink(missing_ok=True)
        command = [
            "dockerd",
            "-H",
            self.address,
            "--data-root",
            CACHE / "root",
            "--exec-root",
            self._exec,
            "--pidfile",
            self._pid,
        ]
        command += [
            "--storage-driver",
            "overlay2",
            "--exec-opt",
            "native.cgroupdriver=cgroupfs",
            "--mtu",
            "1400",
            "--log-level",
            "warn",
        ]
        self._log = (self._place / "dockerd.log").open("ab")
        self._process = subprocess.Popen(
            command,
            stdout=self._log,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
            env=self.environment,
            start_new_session=True,
        )
        deadline = time.monotonic() + READY_SECONDS
        while subprocess.run(["docker", "version"], capture_output=True, env=self.environment).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dockerd did not start: {(self._place / 'dockerd.log').read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self):
        """SIGTERM, as at a shutdown of the machine: what ran stays recorded as running."""
        self._end(signal.SIGTERM)

    def kill(self):
        """kill -9; the containers go on without it, until it is started again."""
        self._end(signal.SIGKILL)
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            containerd = int((self._exec / "containerd" / "containerd.pid").read_text())
            os.kill(containerd, signal.SIGKILL)

    def docker(self, *arguments, check=True, stdin=None, timeout=120) -> str:
        """What the command printed. Raises AssertionError with what it complained about."""
        done = subprocess.run(
            ["docker", *map(str, arguments)],
            capture_output=True,
            text=True,
            stdin=stdin,
            env=self.environment,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, (
            f"docker {' '.join(map(str, arguments))}: {done.stderr or done.stdout}"
        )
        return done.stdout

    def compose(self, project, files, *arguments, environ=None, timeout=180) -> str:
        """docker compose -p PROJECT -f FILE ... ARGUMENTS."""
        named = [word for file in files for word in ("-f", str(file))]
        command = ["docker", "compose", "-p", project, *named, *map(str, arguments)]
        surroundings = {**self.environment, **(environ or {})}
        done = subprocess.run(command, capture_output=True, text=True, env=surroundings, timeout=timeout)
        assert done.returncode == 0, f"docker compose {' '.join(map(str, arguments))}: {done.stderr or done.stdout}"
        return done.stdout

    def inspect(self, container) -> dict:
        return json.loads(self.docker("inspect", "--type", "container", container))[0]

    def up(self, project, services, place, **more) -> Path:
        """Start a project of stand-ins: services by name, each with more keys of a Compose file. The file's path."""
        common = {"image": BASE, "pull_policy": "never", "stop_signal": "SIGKILL", "command": ["sleep", "infinity"]}
        content = {"services": {name: {**common, **keys} for name, keys in services.items()}, **more}
        file = Path(place) / f"{project}.yml"
        file.write_text(json.dumps(content))  # JSON is YAML
        self.compose(project, [file], "up", "-d")
        return file

    def close(self):
        if self._process and self._process.poll() is None:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self._clear()
            self.stop()
        for mount in reversed(Path("/proc/mounts").read_text().splitlines()):
            if (point := mount.split()[1]).startswith((f"{self._place}/", f"{CACHE}/root/")):
                subprocess.run(["umount", "-l", point], capture_output=True)
        if self._makes_bridge:
            subprocess.run(["ip", "link", "delete", BRIDGE.name], capture_output=True)
        Path("/proc/sys/net/ipv4/ip_forward").write_text(self._forwarded)
        shutil.rmtree(self._place, ignore_errors=True)

    def _clear(self):
        """Remove every container, volume and network; the images stay."""
        containers = self.docker("ps", "-aq").split()
        if containers:
            self.docker("rm", "-fv", *containers)
        self.docker("volume", "prune", "-f")
        self.docker("network", "prune", "-f")

    def _end(self, number):
        if self._process.poll() is None:
            os.kill(self._process.pid, number)
            try:
                self._process.wait(timeout=READY_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def _have_base(self):
        if self.docker("image", "ls", "-q", BASE).strip():
            return
        with _base_tar().open("rb") as tar:
            self.docker("import", "--change", 'CMD ["bash"]', "--change", "ENV LANG=C.UTF-8", "-", BASE, stdin=tar)


def _mirror() -> str:
    """The machine's own mirror of Debian."""
    asked = [
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Codename: bookworm",
        "Component: main",
    ]
    if not (found := _ran(*asked).split()):
        _ran("apt-get", "update")
        found = _ran(*asked).split()
    if not found:
        raise Unavailable("apt-get knows no mirror of bookworm")
    return found[0]


def _base_tar() -> Path:
    """A Debian with apt in it, made once."""
    target = CACHE / "bookworm.tar"
    with _locked("base"):
        if not target.exists():
            script = unpacked("mmdebstrap") / "usr" / "bin" / "mmdebstrap"
            options = [
                "--variant=apt",
                "--mode=root",
                '--aptopt=Acquire::Languages "none"',
                "--include=ca-certificates",
            ]
            made = target.with_suffix(".new.tar")
            command = [script, "-q", *options, "bookworm", made, _mirror()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=280)
            if done.returncode:
                raise Unavailable(f"mmdebstrap: {done.stderr[-500:]}")
            made.rename(target)
    return target


def _compose_plugin() -> Path:
    """The file cli-plugins/docker-compose, in a directory that serves as DOCKER_CONFIG; downloaded once."""
    target = CACHE / "config" / "cli-plugins" / "docker-compose"
    with _locked("compose"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as work:
                lists = Path(work) / "lists"
                (lists / "partial").mkdir(parents=True)
                source = Path(work) / "newer.list"
                source.write_text(
                    f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {_mirror()} {NEWER} main\n"
                )
                options = [f"Dir::Etc::sourcelist={source}", "Dir::Etc::sourceparts=-", f"Dir::State::lists={lists}"]
                options += ["Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false", "Acquire::Languages=none"]
                named = [word for option in options for word in ("-o", option)]
                _ran("apt-get", *named, "-q", "update")
                _ran("apt-get", *named, "-q", "download", "docker-compose", cwd=work)
                _ran("dpkg-deb", "-x", next(Path(work).glob("*.deb")), Path(work) / "x")
                target.parent.mkdir(parents=True, exist_ok=True)
                os.rename(next((Path(work) / "x").rglob("cli-plugins/docker-compose")), target)
    return target


def _iptables() -> Path:
    """A directory with the names that Debian makes when the package is installed."""
    place = CACHE / "names"
    place.mkdir(parents=True, exist_ok=True)
    tool = unpacked("iptables") / "usr" / "sbin" / "xtables-nft-multi"
    for name in ("iptables", "ip6tables"):
        with contextlib.suppress(FileExistsError):
            (place / name).symlink_to(tool)
    return place


@contextlib.contextmanager
def _locked(name):
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
