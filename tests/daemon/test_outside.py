"""What the daemon shows: metrics, health, JSON, to a real Prometheus too (M6, C2's server)."""

import http.client
import json
import signal
import socket
import time
import urllib.error
import urllib.request

from tests.servers.prometheus import prometheus, promtool

AWAKE = """
import aquad.daemon.timer as timer
timer.HEARTBEAT_SECONDS = 1
"""
"""It soon sees what somebody else wrote into the journal."""
SOON_DEAD = """
import aquad.observe.web as web, aquad.daemon.keeper as keeper, time
web.SILENT_SECONDS = 1.0
tick = keeper.Keeper.tick
def stuck(self):
    tick(self)
    if self.repository.layout.root.joinpath("stuck").exists():
        time.sleep(60)
keeper.Keeper.tick = stuck
"""


def get(url):
    """Status, and the JSON that it answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())
    except OSError:
        return 0, {}


def metrics(url):
    """Samples by name and labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        text = answer.read().decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return text, {name: float(value) for name, _, value in lines}


def lasting(samples):
    """Those that a restart must not change."""
    changing = ("_age_seconds", "aquad_run", "heartbeat", "notifications", "free_bytes", "forecast")
    return {name: value for name, value in samples.items() if not any(word in name for word in changing)}


class TestHealth:
    def test_red_before_init_green_after_the_first_full_and_a_run_reddens_nothing(self, live):
        url = live.listens()
        assert "Connection refused" in live.refused(1, "ping")
        with live.daemon():
            live.wait_for(lambda: "aquad init" in str(get(f"{url}/readyz")[1].get("reasons")))
            status, said = get(f"{url}/readyz")
            assert (status, said["ready"]) == (503, False)
            assert get(f"{url}/healthz") == (200, {"schema_version": 1, "alive": True, "reasons": []})
            assert get(f"{url}/api/v1/backups")[0] == 503
            assert not [name for name in metrics(url)[1] if name.startswith(("aquad_backup", "backup_"))]
            live.ok("init")
            live.wait_for_line("slot_ended")
            live.wait_for(lambda: get(f"{url}/readyz")[0] == 200)
            assert live.ok("ping") == "alive\n"
            with live.stuck_dump():
                by_hand = live.start("run", "full")
                live.wait_for_line("run_started", 2)
                assert get(f"{url}/readyz")[0] == get(f"{url}/healthz")[0] == 200
                by_hand.terminate()
                by_hand.wait()

    def test_M6_a_loop_that_stands_still_is_not_alive(self, live):
        url = live.listens()
        live.ok("init")
        with live.daemon(script=SOON_DEAD):
            live.wait_for_line("slot_ended")
            live.wait_for(lambda: get(f"{url}/healthz")[0] == 200)
            (live.backups / "stuck").touch()
            live.ok("run", "full")  # wakes nobody; the next look comes by itself
            _, said = live.wait_for(lambda: (found := get(f"{url}/healthz"))[0] == 503 and found, 60)
            assert "has not looked around" in said["reasons"][0]
            assert "has not looked around" in live.refused(1, "ping")

    def test_a_port_that_is_taken_is_said(self, live):
        url = live.listens()
        with socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))):
            assert "Address already in use. Look at web.listen" in live.refused(1, "serve").replace("\n  ", ". ")

    def test_requests_of_every_kind_end_in_an_answer(self, live):
        url = live.listens()
        with live.daemon():
            live.wait_for(lambda: get(f"{url}/healthz")[0])
            connection = http.client.HTTPConnection(url.removeprefix("http://"))
            for method, path, status in (
                ("GET", "/nothing", 404),
                ("POST", "/metrics", 405),
                ("DELETE", "/api/v1/backups/x", 405),
                ("HEAD", "/metrics", 200),
                ("GET", "/api/v1/backups/..%2f..%2fetc%2fpasswd", 404),
            ):
                connection.request(method, path)
                answer = connection.getresponse()
                answer.read()
                assert (method, path, answer.status) == (method, path, status)
            connection.close()


class TestContent:
    def test_it_answers_what_the_command_line_prints(self, live):
        url = live.listens()
        live.ok("init")
        with live.daemon(script=AWAKE):
            live.wait_for_line("slot_ended")
            live.ok("verify", "latest")
            newest = live.latest()
            listed = json.loads(live.ok("--json", "list"))
            live.wait_for(lambda: get(f"{url}/api/v1/backups")[1] == listed, 60)
            assert get(f"{url}/api/v1/backups/latest")[1] == json.loads(live.ok("--json", "show", newest))
            assert get(f"{url}/api/v1/backups/{newest[:13]}")[1]["backup"]["id"] == newest
            status, said = get(f"{url}/api/v1/backups/20200101")
            assert (status, "20200101" in said["error"]) == (404, True)
            mine, theirs = get(f"{url}/api/v1/status")[1], json.loads(live.ok("--json", "status"))
            assert mine.keys() == theirs.keys()
            assert [one["backup"] for one in mine["components"]] == [one["backup"] for one in theirs["components"]]
            assert get(f"{url}/api/v1/runs")[1]["runs"] == theirs["runs"]
            assert get(f"{url}/api/v1/next")[1]["runs"][:3] == json.loads(live.ok("--json", "next"))["runs"][:3]

    def test_a_restart_changes_no_gauge(self, live):
        url = live.listens()
        live.ok("init")
        with live.daemon() as process:
            live.wait_for_line("slot_ended")
            live.wait_for(lambda: metrics(url)[1].get('aquad_runs_total{outcome="success",run="full"}') == 1)
            _, before = metrics(url)
            process.send_signal(signal.SIGTERM)
            process.wait(10)
        with live.daemon():
            live.wait_for(lambda: get(f"{url}/readyz")[0] == 200)
            _, after = metrics(url)
        assert lasting(after) == lasting(before)
        assert before['aquad_backup_success{component="postgres"}'] == 1
        assert before['backup_success{service="volumes"}'] == 1
        assert after['aquad_runs_total{outcome="success",run="full"}'] == 0

    def test_a_real_prometheus_scrapes_it(self, live):
        url = live.listens()
        live.ok("init")
        with live.daemon():
            live.wait_for_line("slot_ended")
            live.wait_for(lambda: get(f"{url}/readyz")[0] == 200)
            text, samples = metrics(url)
            checked = promtool("check", "metrics", stdin=text)
            assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
            target = url.removeprefix("http://")
            config = f"""
global: {{scrape_interval: 1s}}
scrape_configs: [{{job_name: aquad, static_configs: [{{targets: ["{target}"]}}]}}]
"""
            with prometheus(config) as server:
                live.wait_for(lambda: server.value('up{job="aquad"}') == 1, 60)
                assert server.value('aquad_backup_success{component="postgres"}') == 1
                taken = server.value('aquad_backup_last_success_timestamp_seconds{component="configs"}')
                assert abs(taken - time.time()) < 60
                assert server.value('aquad_backup_size_bytes{component="postgres",form="plain"}') > 0
                assert samples.keys() >= {"aquad_settings_valid", "aquad_schedule_held"}
