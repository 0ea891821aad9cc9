"""The guard before a real Engine: what it lets through, and what it lets go on when somebody dies."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import docker
import pytest

PROJECT, OTHER = "aqguard", "aqother"
MAX_PAUSE_SECONDS = 3
SECRET = "hunter2-in-the-environment"


def wait_for(what, seconds=15.0):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.05)
    return found


class Guard:
    """`aquad docker-guard`, as a process."""

    def __init__(self, engine, place):
        self.socket = place / "guard.sock"
        self.state = place / "state"
        self._settings = place / "settings.toml"
        self._settings.write_text(f"""
stack = "{PROJECT}"
[docker]
host = "unix://{self.socket}"
engine = "{engine.socket}"
state = "{self.state}"
[limits]
max_pause = "{MAX_PAUSE_SECONDS}s"
[volumes.kafka_data]
path = "/source/kafka_data"
service = "kafka"
[volumes.zookeeper_data]
path = "/source/zookeeper_data"
service = "zookeeper"
""")
        self._log = place / "log"
        self.start()

    def start(self):
        self.socket.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "aquad", "-c", self._settings, "docker-guard"]
            self._process = subprocess.Popen(command, stderr=log)
        wait_for(self._answers)

    def _answers(self):
        assert self._process.poll() is None, self.log
        with contextlib.suppress(OSError):
            return self.ask("GET", "/_ping")[0] == 200

    @property
    def log(self):
        return self._log.read_text()

    def end(self, number=signal.SIGTERM):
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self._process.wait(timeout=20)

    def connection(self):
        made = http.client.HTTPConnection("docker", timeout=20)
        made.sock = socket.socket(socket.AF_UNIX)
        made.sock.settimeout(20)
        try:
            made.sock.connect(str(self.socket))
        except OSError:
            made.close()
            raise
        return made

    def ask(self, method, path, **headers):
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def raw(self, content):
        """The first line of the answer to these very bytes; empty where the connection was just closed."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(self.socket))
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        return answer

    @contextlib.contextmanager
    def lease(self, seconds=60):
        with contextlib.closing(self.connection()) as connection:
            connection.request("POST", f"/aquad/lease?seconds={seconds}")
            answer = connection.getresponse()
            yield json.loads(answer.readline())["lease"], answer
            answer.close()


@pytest.fixture(scope="module")
def stack(engine, tmp_path_factory):
    place = tmp_path_factory.mktemp("stack")
    services = {name: {"environment": {"PASSWORD": SECRET}} for name in ("kafka", "zookeeper", "postgres")}
    services["kafka"]["command"] = ["sh", "-c", "echo begun; exec sleep infinity"]
    files = [(PROJECT, engine.up(PROJECT, services, place)), (OTHER, engine.up(OTHER, {"kafka": {}}, place))]
    yield files
    for project, file in files:
        engine.compose(project, [file], "down", "-v")


@pytest.fixture
def guard(engine, stack, tmp_path):
    made = Guard(engine, tmp_path)
    yield made
    made.end()
    for project, file in stack:
        for one in engine.docker("ps", "-q", "--filter", "status=paused").split():
            engine.docker("unpause", one)
        engine.compose(project, [file], "up", "-d")


def name(service, project=PROJECT):
    return f"{project}-{service}-1"


def state(engine, service="kafka", project=PROJECT):
    return engine.inspect(name(service, project))["State"]["Status"]


K = f"/containers/{name('kafka')}"
REFUSED = {
    "another project": ("POST", f"/containers/{name('kafka', OTHER)}/pause"),
    "another project's logs": ("GET", f"/containers/{name('kafka', OTHER)}/logs?stdout=1"),
    "another project, inspected": ("GET", f"/containers/{name('kafka', OTHER)}/json"),
    "a service that no setting names": ("POST", f"/containers/{name('postgres')}/stop"),
    "the same, with a version": ("POST", f"/v1.41/containers/{name('postgres')}/stop"),
    **{
        f"POST {verb}": ("POST", f"{K}/{verb}")
        for verb in ("kill", "restart", "exec", "rename", "update", "resize", "attach", "wait", "json", "logs", "copy")
    },
    **{
        f"GET {verb}": ("GET", f"{K}/{verb}")
        for verb in ("pause", "stop", "start", "unpause", "archive", "export", "top", "stats", "changes", "attach/ws")
    },
    **{
        f"{method} of a pause": (method, f"{K}/pause")
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "pause")
    },
    **{
        f"GET {path}": ("GET", path)
        for path in (
            "/info",
            "/events",
            "/images/json",
            "/volumes",
            "/networks",
            "/secrets",
            "/swarm",
            "/system/df",
            "/session",
            "/plugins",
            "/",
            "//",
            "/v1.41",
            "/grpc",
        )
    },
    **{
        f"POST {path}": ("POST", path)
        for path in (
            "/containers/create",
            "/containers/prune",
            "/build",
            "/auth",
            "/commit",
            "/volumes/create",
            "/exec/1/start",
            "/_ping",
            "/version",
        )
    },
    "remove": ("DELETE", f"/containers/{name('kafka')}"),
    "dots": ("POST", f"/containers/../containers/{name('kafka')}/pause"),
    "dots behind": ("POST", f"{K}/pause/../kill"),
    "encoded slash": ("POST", f"/containers%2f{name('kafka')}/pause"),
    "encoded letter": ("POST", f"{K}/p%61use"),
    "encoded name": ("POST", "/containers/%61qguard-kafka-1/pause"),
    "encoded dots": ("POST", f"/containers/%2e%2e/{name('kafka')}/pause"),
    "zero byte": ("POST", f"{K}/pause%00"),
    "doubled slash": ("POST", f"/containers//{name('kafka')}/pause"),
    "slash behind": ("POST", f"{K}/pause/"),
    "semicolon": ("POST", f"{K}/pause;x=1"),
    "upper case": ("POST", f"{K}/PAUSE"),
    "no version": ("POST", f"/v2/containers/{name('kafka')}/pause"),
    "a version of letters": ("POST", f"/v1.x/containers/{name('kafka')}/pause"),
    "two versions": ("POST", f"/v1.41/v1.41{K}/pause"),
    "following": ("GET", f"{K}/logs?stdout=1&follow=1"),
    "unknown parameter": ("POST", f"{K}/pause?signal=KILL"),
    "a parameter twice": ("POST", f"{K}/stop?t=1&t=2"),
    "a number of letters": ("POST", f"{K}/stop?t=1s"),
    "sizes": ("GET", "/containers/json?size=1"),
    "filters of another kind": ("GET", '/containers/json?filters={"volume":["x"]}'),
    "filters that are no lists": ("GET", '/containers/json?filters={"label":{"a":true}}'),
    "filters that are no JSON": ("GET", "/containers/json?filters=x"),
    "a long name": ("POST", f"/containers/{'a' * 200}/pause"),
}


class TestWhatIsRefused:
    @pytest.mark.parametrize("form", REFUSED)
    def test_and_nothing_happens(self, engine, guard_of_forms, form):
        method, path = REFUSED[form]
        status, body = guard_of_forms.ask(method, path)
        assert status == 403, body
        assert SECRET.encode() not in body
        assert (state(engine), state(engine, "postgres"), state(engine, "kafka", OTHER)) == ("running",) * 3

    @pytest.mark.parametrize(
        "head",
        [
            f"POST {K}/pause HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\n\r\n{{}}",
            f"POST {K}/pause HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            f"POST {K}/pause HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
            f"POST {K}/pause HTTP/1.1\r\nHost: d\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            f"POST {K}/pause HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: xchunked\r\n\r\n",
            f"POST {K}/pause HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
            f"POST {K}/pause HTTP/1.1\r\nHost: d\r\nExpect: 100-continue\r\n\r\n",
            f"POST http://docker{K}/pause HTTP/1.1\r\nHost: d\r\n\r\n",
            f"POST {K}/pause HTTP/1.1\r\n Host: d\r\n\r\n",
            f"POST {K}/pause\x0bHTTP/1.1\r\nHost: d\r\n\r\n",
            f"POST {K}/pause\r\n\r\n",
            f"POST  {K}/pause HTTP/1.1\r\nHost: d\r\n\r\n",
            f"GET /_ping HTTP/1.1\r\nHost: d\r\nContent-Length: 200\r\n\r\nPOST {K}/pause HTTP/1.1\r\nHost: d\r\n\r\n",
            f"CONNECT docker:80 HTTP/1.1\r\nHost: d\r\n\r\nPOST {K}/kill HTTP/1.1\r\nHost: d\r\n\r\n",
        ],
    )
    def test_what_could_be_read_in_two_ways(self, engine, guard_of_forms, head):
        answer = guard_of_forms.raw(head.encode())
        assert not {b"200", b"204"} & set(answer.split()), answer
        assert state(engine) == "running"

    def test_a_pipelined_second_request_is_judged_by_itself(self, engine, guard_of_forms):
        content = f"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\nPOST {K}/kill HTTP/1.1\r\nHost: d\r\n\r\n"
        assert b"403 Forbidden" in guard_of_forms.raw(content.encode())
        assert state(engine) == "running"

    def test_another_user_cannot_connect(self, guard_of_forms):
        status = os.stat(guard_of_forms.socket)
        assert status.st_mode & 0o777 == 0o660


@pytest.fixture(scope="class")
def guard_of_forms(engine, stack, tmp_path_factory):
    made = Guard(engine, tmp_path_factory.mktemp("forms"))
    yield made
    made.end()


class TestTheSdk:
    def test_sees_and_moves_what_the_settings_name_and_no_password(self, engine, guard):
        client = docker.DockerClient(base_url=f"unix://{guard.socket}", version="auto")
        try:
            assert client.ping()
            found = client.containers.list(all=True, filters={"label": "com.docker.compose.service"})
            assert {one.name for one in found} == {name("kafka"), name("zookeeper")}
            kafka = client.containers.get(name("kafka"))
            assert SECRET not in json.dumps(kafka.attrs)
            assert kafka.logs() == b"begun\n"
            with pytest.raises(docker.errors.NotFound):
                client.containers.get("nobody")
            with pytest.raises(docker.errors.APIError, match="403"):
                client.containers.get(name("postgres"))
            kafka.pause()
            assert state(engine) == "paused"
            kafka.unpause()
            assert state(engine) == "running"
            kafka.stop(timeout=1)
            assert state(engine) == "exited"
            kafka.start()
            assert state(engine) == "running"
        finally:
            client.close()


class TestWhatIsHeld:
    def pause(self, guard, lease, service="kafka"):
        return guard.ask("POST", f"/containers/{name(service)}/pause", X_Aquad_Lease=lease)[0]

    def test_goes_on_when_the_connection_ends(self, engine, guard):
        with guard.lease() as (lease, _):
            assert (self.pause(guard, lease), self.pause(guard, lease, "zookeeper")) == (204, 204)
            assert (state(engine), state(engine, "zookeeper")) == ("paused", "paused")
        wait_for(lambda: (state(engine), state(engine, "zookeeper")) == ("running", "running"))
        wait_for(lambda: json.loads((guard.state / "held.json").read_text()) == [])

    def test_goes_on_after_max_pause_whatever_the_lease_asks(self, engine, guard):
        with guard.lease(500) as (lease, answer):
            assert self.pause(guard, lease) == 204
            wait_for(lambda: state(engine) == "running", MAX_PAUSE_SECONDS + 5)
            assert answer.read() == b"", "the lease has ended too, so that its holder learns it"
        assert "held for too long" in guard.log

    def test_a_pause_without_a_lease_goes_on_too(self, engine, guard):
        assert guard.ask("POST", f"{K}/pause")[0] == 204
        wait_for(lambda: state(engine) == "running", MAX_PAUSE_SECONDS + 5)

    def test_a_lease_that_is_over_holds_nothing(self, engine, guard):
        with guard.lease() as (lease, _):
            pass
        wait_for(lambda: self.pause(guard, lease) == 409 and state(engine) == "running")

    def test_the_ledger_is_written_before_the_pause(self, engine, guard):
        with guard.lease() as (lease, _):
            self.pause(guard, lease)
            (entry,) = json.loads((guard.state / "held.json").read_text())
            assert (entry["service"], entry["verb"]) == ("kafka", "pause")

    def test_where_the_ledger_cannot_be_written_nothing_is_held(self, engine, guard):
        (guard.state / "held.new").mkdir()
        with guard.lease() as (lease, _):
            assert self.pause(guard, lease) == 500
            assert state(engine) == "running"

    def test_what_somebody_else_paused_stays_so(self, engine, guard):
        engine.docker("pause", name("kafka"))
        with guard.lease() as (lease, _):
            assert self.pause(guard, lease) == 409
        guard.end()
        assert state(engine) == "paused"

    def test_what_somebody_else_stopped_stays_so(self, engine, guard):
        engine.docker("stop", name("kafka"))
        with guard.lease() as (lease, _):
            assert guard.ask("POST", f"{K}/stop", X_Aquad_Lease=lease)[0] == 409
        guard.end()
        assert state(engine) == "exited"

    def test_what_was_stopped_for_a_backup_is_started_again(self, engine, guard):
        with guard.lease() as (lease, _):
            assert guard.ask("POST", f"{K}/stop?t=1", X_Aquad_Lease=lease)[0] == 204
            assert state(engine) == "exited"
        wait_for(lambda: state(engine) == "running")

    def test_what_a_restore_stopped_is_not(self, engine, guard):
        assert guard.ask("POST", f"{K}/stop?t=1")[0] == 204
        guard.end()
        assert state(engine) == "exited"

    def test_f1_the_guard_is_killed_and_the_next_one_lets_go_on(self, engine, guard):
        with guard.lease() as (lease, _):
            self.pause(guard, lease)
            guard.end(signal.SIGKILL)
            assert state(engine) == "paused"
            guard.start()
            wait_for(lambda: state(engine) == "running")

    def test_a_guard_that_is_ended_lets_go_on_before(self, engine, guard):
        with guard.lease() as (lease, _):
            self.pause(guard, lease)
            assert guard.end() == 0
        assert state(engine) == "running"

    def test_f4_what_was_made_anew_meanwhile_is_not_touched(self, engine, guard, stack):
        with guard.lease() as (lease, _):
            self.pause(guard, lease)
            engine.compose(PROJECT, [stack[0][1]], "up", "-d", "--force-recreate", "--no-deps", "kafka")
            engine.docker("pause", name("kafka"))
        wait_for(lambda: json.loads((guard.state / "held.json").read_text()) == [])
        assert state(engine) == "paused", "somebody paused the new one, and not for us"

    def test_f7_the_engine_dies_and_comes_back(self, engine, guard, stack):
        with guard.lease() as (lease, _):
            self.pause(guard, lease)
            engine.kill()
        wait_for(lambda: "cannot let go on yet" in guard.log)
        engine.start()
        wait_for(lambda: json.loads((guard.state / "held.json").read_text()) == [], 20)
        assert state(engine) != "paused"

    def test_a_spoilt_ledger_is_put_aside_and_told(self, engine, guard):
        guard.end()
        (guard.state / "held.json").write_text("{")
        guard.start()
        assert "ledger lost" in guard.log
        assert (guard.state / "held.spoilt").exists()
