"""Encryption as operators meet it: what is in the files, what opens them, and what happens when the key is not there."""

import gzip
import json
import os
import shutil
import stat
import subprocess
import sys

import pytest

from aquad.demo import compare, playground
from tests.cli.test_commands import Stack
from tests.keys import KeyRing, secret_file


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    with KeyRing(tmp_path_factory.mktemp("ring")) as ring:
        yield ring


@pytest.fixture
def stack(tmp_path, shared_server):
    stack = Stack(tmp_path, shared_server)
    with shared_server.connect() as connection:
        for name in ("secrets", "others"):
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {name}")
    with shared_server.connect("secrets") as connection:
        connection.execute(
            "CREATE TABLE items AS SELECT i, 'confidential ' || i AS name FROM generate_series(1, 1000) i"
        )
    with shared_server.connect("others") as connection:
        connection.execute("CREATE TABLE more AS SELECT i FROM generate_series(1, 50) i")
    (tmp_path / "volumes" / "nginx_logs" / "confidential.log").write_text("confidential\n" * 50)
    secret_file(tmp_path / "passphrase", "correct horse battery staple\n")
    stack.settings.write_text(
        stack.settings.read_text()
        .replace("[postgres]", '[postgres]\ndatabases = ["secrets", "others"]')
        .replace('mode = "off"', f'passphrase_file = "{tmp_path}/passphrase"')
    )
    return stack


def encrypt(stack, mode, *extra, **keys):
    """Settings of a mode, with these keys."""
    lines = "".join(
        f"{key} = {json.dumps(value if isinstance(value, list) else str(value))}\n" for key, value in keys.items()
    )
    text = stack.settings.read_text()
    before, rest = text.split("[encryption]\n")
    after = rest[rest.index("[postgres]") :]
    mode_line = f'mode = "{mode}"\n' if mode else ""
    stack.settings.write_text(f"{before}[encryption]\n{mode_line}{lines}{after}")


def everything(top):
    return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


def data(top):
    """All but the journal, and the reports of runs, failed ones too."""
    return {
        name: content for name, content in everything(top).items() if not name.startswith(("state/", "backup_report"))
    }


def volumes(stack):
    return {name: compare.tree(name, stack.top / "volumes" / name) for name in playground.VOLUMES}


def destroy(stack):
    for name in playground.VOLUMES:
        playground.empty_directory(stack.top / "volumes" / name)
    playground.empty_directory(stack.top / "checkout")
    with stack.server.connect("secrets") as connection:
        connection.execute("TRUNCATE items")


def comes_back(stack, which="latest", **options):
    before = volumes(stack)
    destroy(stack)
    stack.ok("restore", "all", which, "--yes", **options)
    with stack.server.connect("secrets") as connection:
        rows = connection.execute("SELECT count(*) FROM items").fetchone()[0]
    assert volumes(stack) == before
    assert rows == 1000
    stack.ok("restore", "discard", "--yes")


class TestPassphrase:
    def test_the_whole_way(self, stack):
        stack.ok("init", "--encryption", "passphrase")
        stack.ok("run", "full")
        for name, content in everything(stack.backups).items():
            clear = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
            if name.startswith("manifests/") and name.endswith(".json"):
                assert b'"secrets"' in clear, "names of databases can be read"
            assert b"confidential" not in clear, name
            clear_names = ("aquad-repository.json", "manifests/", "state/", "backup_report")
            assert name.endswith(".gpg") or name.startswith(clear_names), name
        assert stat.S_IMODE(next(stack.backups.glob("*.gpg")).stat().st_mode) == 0o600
        assert "good (content)" in stack.ok("verify", "all", "--level", "content")
        comes_back(stack)
        shown = stack.ok("show", "latest")
        assert "secrets: 1 tables, 1000 rows" in shown
        assert "encryption passphrase (" in shown
        report = next(stack.backups.glob("backup_report_*")).read_text()
        assert "Encryption   passphrase (" in report
        assert "Encryption   off" not in report

    def test_every_file_opens_with_stock_gpg(self, stack, tmp_path):
        stack.ok("init", "--encryption", "passphrase")
        stack.ok("run", "full")
        home = tmp_path / "home"
        home.mkdir(mode=0o700)
        plain = {}
        for path in stack.backups.rglob("*.gpg"):
            plain[path.name] = subprocess.run(
                [
                    "gpg",
                    "--batch",
                    "-q",
                    "--pinentry-mode=loopback",
                    f"--passphrase-file={tmp_path}/passphrase",
                    "-d",
                    path,
                ],
                capture_output=True,
                check=True,
                env={**os.environ, "GNUPGHOME": str(home)},
            ).stdout
        dump = next(text for name, text in plain.items() if name.startswith("postgres_backup"))
        assert b"confidential 1000" in gzip.decompress(dump)
        logs = tmp_path / "logs"
        logs.mkdir()
        subprocess.run(["tar", "-xz", "-C", logs], input=plain["nginx_logs.tar.gz.gpg"], check=True)
        assert (logs / "confidential.log").read_text() == "confidential\n" * 50
        assert b'"path":"./confidential.log"' in gzip.decompress(plain["nginx_logs.jsonl.gz.gpg"])

    @pytest.mark.parametrize("what", ["wrong", "missing", "empty"])
    def test_L1_without_the_right_passphrase_nothing_is_written_or_touched(self, stack, tmp_path, what):
        stack.ok("init", "--encryption", "passphrase")
        stack.ok("run", "full")
        secret = tmp_path / "passphrase"
        secret.unlink() if what == "missing" else secret.write_text({"wrong": "guess", "empty": ""}[what])
        before = data(stack.backups)
        assert "passphrase" in stack.refused(12, "run", "full")
        live = volumes(stack)
        assert "passphrase" in stack.refused(12, "restore", "all", "latest", "--yes")
        assert volumes(stack) == live
        assert data(stack.backups) == before
        assert "ERROR" in stack.run("check").stdout
        looked = stack.run("verify", "all", "--level", "content")
        assert looked.returncode == 3
        assert "good (bytes)" in looked.stdout
        assert "not looked into" in looked.stdout
        entry = json.loads((stack.backups / "state" / "audit.jsonl").read_text().splitlines()[-1])
        assert (entry["event"], entry["level"]) == ("verified", "bytes")

    def test_L7_plain_encrypted_and_rekeyed_backups_side_by_side(self, stack, tmp_path, ring):
        stack.ok("init", "--encryption", "off", "--yes")
        stack.ok("run", "full")
        stack.ok("init", "--encryption", "passphrase")
        stack.ok("run", "full")
        new = secret_file(tmp_path / "new", "another one")
        encrypt(stack, "", passphrase_file=new, old_passphrase_files=[str(tmp_path / "passphrase")])
        assert "aquad init --encryption passphrase" in stack.refused(12, "run", "full")
        stack.ok("init", "--encryption", "passphrase")
        stack.ok("run", "full")
        encrypt(
            stack,
            "",
            passphrase_file=new,
            old_passphrase_files=[str(tmp_path / "passphrase")],
            recipients=[ring.alice],
            public_keys_file=ring.public,
            private_keys_file=ring.private_of(ring.alice),
        )
        stack.ok("init", "--encryption", "public-key")
        stack.ok("run", "full")
        backups = json.loads(stack.ok("--json", "list"))["backups"]
        assert len(backups) == 4
        assert stack.ok("verify", "all", "--level", "content").count("good (content)") == 4
        for backup in backups:
            comes_back(stack, backup["id"])
        manifests = [json.loads(path.read_bytes()) for path in sorted((stack.backups / "manifests").glob("*.json"))]
        used = [m["components"][0]["artifacts"][0]["encryption"] for m in manifests]
        assert [one["mode"] for one in used] == ["off", "passphrase", "passphrase", "public-key"]
        assert used[1]["key_ids"] != used[2]["key_ids"]
        assert used[3]["key_ids"] == [ring.alice]

    def test_what_a_restore_keeps_aside_is_encrypted_too(self, stack):
        stack.ok("init", "--encryption", "passphrase")
        stack.ok("run", "full")
        stack.ok("restore", "volume", "nginx_logs", "latest", "--yes")
        (kept,) = (stack.backups / "aside").rglob("*.gpg")
        assert kept.name == "nginx_logs.tar.gz.gpg"
        assert b"confidential" not in kept.read_bytes()
        target = stack.top / "look"
        stack.ok("restore", "volume", "nginx_logs", str(kept), "--trusted", "--to", target, "--yes")
        assert (target / "confidential.log").read_text() == "confidential\n" * 50


class TestPublicKeys:
    def test_this_machine_writes_what_it_cannot_open(self, stack, ring):
        encrypt(stack, "public-key", recipients=[ring.alice, ring.bob], public_keys_file=ring.public)
        stack.ok("init")
        stack.ok("run", "full")
        looked = stack.run("verify", "latest", "--level", "content")
        assert looked.returncode == 3
        assert "good (bytes)" in looked.stdout
        assert "needs the key" in looked.stdout
        assert "good (bytes)" in stack.ok("verify", "latest")
        live = volumes(stack)
        assert "private_keys_file" in stack.refused(12, "restore", "all", "latest", "--yes")
        assert volumes(stack) == live
        for who in (ring.alice, ring.bob):
            encrypt(
                stack,
                "public-key",
                recipients=[ring.alice, ring.bob],
                public_keys_file=ring.public,
                private_keys_file=ring.private_of(who),
            )
            comes_back(stack)

    @pytest.mark.parametrize("who", ["expired", "revoked", "signing"])
    def test_L1_a_recipient_that_is_no_good_stops_init_and_run(self, stack, ring, who):
        encrypt(stack, "public-key", recipients=[getattr(ring, who)], public_keys_file=ring.public)
        stack.refused(12, "init")
        assert not stack.backups.exists()
        encrypt(stack, "public-key", recipients=[ring.alice], public_keys_file=ring.public)
        stack.ok("init")
        encrypt(stack, "public-key", recipients=[getattr(ring, who)], public_keys_file=ring.public)
        stack.refused(12, "run", "full")
        assert not list(stack.backups.glob("*_backup_*"))

    def test_L5_other_recipients_than_recorded_are_refused(self, stack, ring):
        encrypt(stack, "public-key", recipients=[ring.alice], public_keys_file=ring.public)
        stack.ok("init")
        encrypt(stack, "public-key", recipients=[ring.alice, ring.carol], public_keys_file=ring.public)
        assert "recipients" in stack.refused(12, "run", "full")
        stack.ok("init", "--encryption", "public-key")
        stack.ok("run", "full")


class TestChoosing:
    def test_init_refuses_without_a_choice(self, stack):
        assert "nobody chose" in stack.refused(2, "init")
        assert not stack.backups.exists()

    def test_L3_weaker_settings_are_refused_until_init_is_run_again(self, stack, tmp_path):
        stack.ok("init", "--encryption", "passphrase")
        encrypt(stack, "off", passphrase_file=tmp_path / "passphrase")
        assert "was made with 'passphrase'" in stack.refused(1, "run", "full")
        assert "no terminal to ask" in stack.refused(2, "init", "--encryption", "off")
        stack.refused(1, "run", "full")
        stack.ok("init", "--encryption", "off", "--yes")
        stack.ok("run", "full")
        assert "encryption is off" in stack.ok("status")
        assert not list(stack.backups.rglob("*.gpg"))

    def test_init_again_without_a_change_is_refused(self, stack):
        stack.ok("init", "--encryption", "passphrase")
        assert "it is a repository already" in stack.refused(1, "init", "--encryption", "passphrase")

    def test_L2_status_reminds_until_the_key_is_proved_to_be_elsewhere(self, stack, tmp_path):
        made = stack.run("init", "--encryption", "passphrase")
        assert "Keep the key off this host too" in made.stderr
        assert "key confirm" in stack.ok("status")
        assert "key confirm" in stack.run("check").stdout
        for answer, code in (("wrong", 12), (None, 0)):
            assert self.confirm(stack, tmp_path, answer) == code
            assert ("key confirm" in stack.ok("status")) == (code != 0)
        assert "key confirm" not in stack.run("check").stdout
        secret_file(tmp_path / "passphrase", "a new one")
        stack.ok("init", "--encryption", "passphrase")
        assert "key confirm" in stack.ok("status"), "of another key nothing was proved"

    def confirm(self, stack, tmp_path, answer):
        command = [sys.executable, "-m", "aquad", "-c", stack.settings, "key", "confirm"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
            message = ""
            while "END PGP MESSAGE" not in message:
                line = asking.stdout.readline()
                assert line, message
                message += line
            elsewhere = tmp_path / "elsewhere"
            shutil.rmtree(elsewhere, ignore_errors=True)
            elsewhere.mkdir(mode=0o700)
            said = subprocess.run(
                ["gpg", "--batch", "-q", "--pinentry-mode=loopback", f"--passphrase-file={tmp_path}/passphrase", "-d"],
                input=message[message.index("-----BEGIN") :],
                env={**os.environ, "GNUPGHOME": str(elsewhere)},
                text=True,
                capture_output=True,
                check=True,
            ).stdout
            asking.communicate(f"{answer or said.strip()}\n")
        return asking.returncode

    def test_a_key_that_lies_in_what_is_backed_up_is_named(self, stack):
        secret = secret_file(stack.top / "checkout" / "infra" / "scripts" / "passphrase", "in the wrong place")
        encrypt(stack, "passphrase", passphrase_file=secret)
        assert "which is backed up itself" in stack.run("init").stderr
        assert "which is backed up itself" in stack.run("check").stdout

    def test_no_secret_in_any_process_or_journal(self, stack, tmp_path):
        secret = "a-very-particular-passphrase"
        secret_file(tmp_path / "passphrase", secret)
        stack.ok("init", "--encryption", "passphrase")
        seen, command = [], [sys.executable, "-m", "aquad", "-c", str(stack.settings), "run", "full"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            while running.poll() is None:
                for process in os.listdir("/proc"):
                    for what in ("cmdline", "environ"):
                        try:
                            with open(f"/proc/{process}/{what}", "rb") as file:
                                text = file.read()
                        except OSError:
                            continue
                        if process.isdigit() and b"gpg" in text and what == "cmdline":
                            seen.append(process)
                        assert secret.encode() not in text
        assert seen, "gpg was never looked at"
        assert running.returncode == 0
        assert all(secret.encode() not in content for content in everything(stack.backups).values())
