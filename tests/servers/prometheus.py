"""A real Prometheus and a real Alertmanager, from Debian's packages, on ports of their own."""

import fcntl
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers.debian import CACHE, Unavailable, environment, file, unpacked
from tests.servers.ports import free_port

PROMETHEUS, ALERTMANAGER = "prometheus", "prometheus-alertmanager"
TEMPLATES = b"/usr/share/prometheus/alertmanager"


def promtool(*arguments, stdin=None):
    """Returns the finished process."""
    command = [_program(PROMETHEUS, "promtool"), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, env=environment(PROMETHEUS))


def _program(package, name) -> Path:
    try:
        return file(package, name)
    except Unavailable as error:
        pytest.skip(f"NOT TESTED: {package} is not to be had from Debian: {error}")


class Service:
    def __init__(self, port, process):
        self.url = f"http://127.0.0.1:{port}"
        self.address = f"127.0.0.1:{port}"
        self._process = process

    def get(self, path, **parameters):
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        with urllib.request.urlopen(f"{self.url}{path}{query}", timeout=10) as answer:
            return json.loads(answer.read())

    def value(self, query):
        """The one sample of an instant query; None when there is none."""
        found = self.get("/api/v1/query", query=query)["data"]["result"]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def alerts(self):
        """State by name and component of what Prometheus itself says."""
        found = self.get("/api/v1/alerts")["data"]["alerts"]
        return {(one["labels"]["alertname"], one["labels"].get("component", "")): one["state"] for one in found}


@contextmanager
def _served(package, program, port, *arguments):
    """`program`: a path; it runs in a directory of its own, `{top}` in its arguments."""
    with tempfile.TemporaryDirectory(prefix="aquad-prom-") as top, (Path(top) / "log").open("w+") as log:
        for template in unpacked(package).rglob("*.tmpl"):
            shutil.copy(template, top)
        command = [program, *(one.format(top=top) for one in arguments)]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=top, env=environment(package))
        try:
            service = Service(port, process)
            _ready(service, process, log)
            yield service
        finally:
            process.terminate()
            process.wait(20)


def _movable() -> Path:
    """Debian's Alertmanager, told to look for its templates in its working directory: the package is not installed here."""
    debian = _program(ALERTMANAGER, "prometheus-alertmanager")
    program = CACHE / "alertmanager-movable"
    with (CACHE / ".alertmanager-movable.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            content = debian.read_bytes()
            new = program.with_suffix(".new")
            new.write_bytes(content.replace(TEMPLATES, b"." + b"/" * (len(TEMPLATES) - 1)))
            new.chmod(0o755)
            new.rename(program)
    return program


def _ready(service, process, log):
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{service.url}/-/ready", timeout=1).close()
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
        else:
            return
    log.seek(0)
    raise AssertionError(f"{service.url} does not answer: {log.read()[-2000:]}")


@contextmanager
def prometheus(config):
    """`config`: the text of prometheus.yml."""
    port = free_port()
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as written:
        written.write(config)
        written.flush()
        arguments = (
            f"--config.file={written.name}",
            "--storage.tsdb.path={top}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        )
        with _served(PROMETHEUS, _program(PROMETHEUS, "prometheus"), port, *arguments) as service:
            yield service


@contextmanager
def alertmanager(config):
    port = free_port()
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as written:
        written.write(config)
        written.flush()
        arguments = (
            f"--config.file={written.name}",
            "--storage.path={top}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        )
        with _served(ALERTMANAGER, _movable(), port, *arguments) as service:
            yield service
