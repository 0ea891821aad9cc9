"""The rules on a real Prometheus and a real Alertmanager, with a real daemon: broken, seen to fire, mended, seen to resolve."""

import json
import os
import re
import signal
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

import pytest

from tests.daemon.conftest import live
from tests.servers.prometheus import alertmanager, prometheus

__all__ = ["live"]
pytestmark = pytest.mark.timeout(240)
QUICK = """
import aquad.daemon.timer as timer
timer.HEARTBEAT_SECONDS = 1
"""


class Receiver:
    """What Alertmanager tells of the category backup: firing and resolved, by name."""

    def __init__(self):
        self.firing, self.resolved, receiver = set(), set(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                for alert in json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"]:
                    assert alert["labels"]["category"] == "backup"
                    getattr(receiver, alert["status"]).add(alert["labels"]["alertname"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


ROUTES = """
route:
  receiver: nobody
  routes:
    - matchers: [category="backup"]
      receiver: backup
      group_by: [alertname]
      group_wait: 0s
      group_interval: 1s
receivers:
  - name: nobody
  - name: backup
    webhook_configs: [{{url: "{url}", send_resolved: true}}]
"""
SCRAPES = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["{alertmanager}"]}}]}}]}}
scrape_configs: [{{job_name: aquad, static_configs: [{{targets: ["{aquad}"]}}]}}]
"""


@contextmanager
def watched(live, url):
    """The committed rules, as they are but for their patience."""
    rules = live.top / "rules.yml"
    text = (files("aquad.exports") / "aquad-all.yml").read_text()
    text = re.sub(r"^( +for:) \w+$", r"\1 1s", text, flags=re.MULTILINE)
    held = "min_over_time(aquad_schedule_held[1d]) == 1 and last_over_time(aquad_schedule_held[1h] offset 1d) == 1"
    assert held in text
    rules.write_text(text.replace(held, held.replace("1d", "2s")))
    with Receiver() as receiver, alertmanager(ROUTES.format(url=receiver.url)) as routed:
        config = SCRAPES.format(rules=rules, alertmanager=routed.address, aquad=url.removeprefix("http://"))
        with prometheus(config):
            yield receiver


def test_five_of_them_break_fire_mend_and_resolve(live):
    url = live.listens()
    live.ok("init")
    with watched(live, url) as told:
        live.wait_for(lambda: "AquadDown" in told.firing, 60)
        with live.daemon(script=QUICK) as daemon:
            live.wait_for_line("slot_ended")
            live.wait_for(lambda: "AquadDown" in told.resolved, 60)

            volume = live.top / "volumes" / "nginx_logs"
            os.rename(volume, live.top / "away")
            assert live.run("run", "full").returncode == 1
            live.wait_for(lambda: "AquadBackupFailed" in told.firing, 60)

            good = live.settings.read_text()
            live.settings.write_text(good + "nonsense")
            daemon.send_signal(signal.SIGHUP)
            live.wait_for(lambda: "AquadSettingsInvalid" in told.firing, 60)
            live.settings.write_text(good)
            daemon.send_signal(signal.SIGHUP)

            live.ok("hold", "--for", "1h", "a look")
            live.wait_for(lambda: "AquadScheduleHeld" in told.firing, 60)
            live.ok("release")

            os.rename(live.top / "away", volume)
            live.ok("run", "full")
            artifact = next(live.backups.glob("postgres_backup_*.sql.gz"))
            stored = artifact.read_bytes()
            artifact.chmod(0o600)
            artifact.write_bytes(stored[:-9] + bytes([stored[-9] ^ 1]) + stored[-8:])
            assert live.run("verify", "all").returncode == 14
            live.wait_for(lambda: "AquadVerificationFailed" in told.firing, 60)
            artifact.write_bytes(stored)
            live.ok("verify", "all")

            five = {
                "AquadDown",
                "AquadBackupFailed",
                "AquadSettingsInvalid",
                "AquadScheduleHeld",
                "AquadVerificationFailed",
            }
            live.wait_for(lambda: five <= told.resolved, 90)
        assert not told.firing & {
            "AquadBackupTooOld",
            "AquadMetricsStale",
            "AquadSchedulerStalled",
            "AquadNeverSucceeded",
        }
