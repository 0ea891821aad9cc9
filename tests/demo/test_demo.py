"""The demo as a process: as an ordinary user and as root, kept and served, and with something broken behind its back."""

import os
import re
import shlex
import signal
import socket
import tomllib
from pathlib import Path

import psycopg
import pytest

from aquad.demo import compare
from tests.demo.people import IS_ROOT, alive, ended, until, wait_for

pytestmark = pytest.mark.timeout(90)
DEEP = Path("a checkout [with] an odd name", *["that is longer than the path of a socket may be"] * 2, "playground")


def port_of(playground):
    return tomllib.loads((playground / "settings.toml").read_text())["postgres"]["port"]


def connect(playground, database):
    password = (playground / "server" / "password").read_text()
    login = f"host=127.0.0.1 user=postgres dbname={database} port={port_of(playground)} password={password}"
    return psycopg.connect(login, autocommit=True)


def contents(playground):
    """All but the server's files: PostgreSQL allocates them ahead, and the kernel tells their holes now so, now so."""
    trees = [compare.tree(name, playground / name) for name in ("backups", "checkout", "volumes")]
    return trees, (playground / "settings.toml").read_text(), sorted(os.listdir(playground))


def to_type(said):
    return [shlex.split(line) for line in said.splitlines() if line.startswith("    ")]


def different(table):
    return set(re.findall(r"^ (\S.*?)  .* DIFFERENT *$", table, re.MULTILINE))


@pytest.fixture(scope="class")
def kept(ordinary):
    """A playground kept by an ordinary user, and what was said when it was made."""
    playground = ordinary.home / DEEP
    playground.parent.mkdir(parents=True)
    for path in playground.parents:
        if ordinary.home in path.parents:
            os.chown(path, ordinary.uid, -1)
    return playground, ordinary.run("--keep", playground)


class TestAnOrdinaryUser:
    def test_sees_everything_come_back(self, ordinary, kept):
        playground, said = kept
        assert (said.returncode, said.stderr) == (0, "")
        equal = re.search(r"^all (\d+) equal$", said.stdout, re.MULTILINE)
        assert int(equal[1]) >= 16
        assert f"{equal[1]} of {equal[1]} things are gone" in said.stdout
        assert int(re.search(r"^(\d+) s in all", said.stdout, re.MULTILINE)[1]) < 60
        assert {path.lstat().st_uid for path in playground.rglob("*")} == {ordinary.uid}
        assert ordinary.left() == []

    def test_can_run_each_command_it_is_told(self, ordinary, kept):
        playground, said = kept
        serve, *commands, remove = to_type(said.stdout.partition("The playground is kept")[2])
        assert remove == ["rm", "-r", str(playground.relative_to(ordinary.home))]
        server = ordinary.start(*serve)
        again = until(server, "Ctrl-C ends the server.")
        assert to_type(again) == commands
        outputs = [ordinary.run(*command) for command in commands]
        assert [done.returncode for done in outputs] == [0, 0, 0], outputs
        assert [
            word in done.stdout for word, done in zip(("1 backups", "success", "aquastream_db"), outputs, strict=True)
        ] == [True] * 3
        code, last, err = ended(server, signal.SIGINT)
        assert (code, last, err) == (0, "The server is stopped; the playground is kept.\n", "")
        assert ordinary.left() == []

    def test_has_another_port_when_the_old_one_is_taken(self, ordinary, kept):
        playground, _ = kept
        before = port_of(playground)
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", before))
            taken.listen()
            server = ordinary.start("--serve", playground)
            said = until(server, "Ctrl-C ends the server.")
        assert f"Port {before} is taken: {playground / 'settings.toml'} says {port_of(playground)} now." in said
        assert port_of(playground) != before
        check = ordinary.run(ordinary.python, "-m", "aquad", "-c", playground / "settings.toml", "check")
        assert f"postgres@127.0.0.1:{port_of(playground)} is PostgreSQL" in check.stdout
        assert "running already" in ordinary.refused("--serve", playground)
        assert ended(server, signal.SIGTERM)[0] == 0
        assert ordinary.left() == []

    def test_need_not_fear_a_kill(self, ordinary, kept):
        playground, _ = kept
        server = ordinary.start("--serve", playground)
        until(server, "Ctrl-C ends the server.")
        server.kill()
        server.wait()
        wait_for(lambda: not alive(ordinary.home))
        again = ordinary.start("--serve", playground)
        until(again, "Ctrl-C ends the server.")
        assert ended(again, signal.SIGHUP)[0] == 0

    def test_loses_nothing_by_a_second_demo(self, ordinary, kept):
        playground, _ = kept
        before = contents(playground)
        assert "--serve" in ordinary.refused("--keep", playground)
        assert "is no playground" in ordinary.refused("--keep", playground.parent)
        assert contents(playground) == before

    def test_is_told_what_is_no_playground(self, ordinary, kept):
        playground, _ = kept
        assert "is no playground" in ordinary.refused("--serve", playground.parent)
        assert "is no playground" in ordinary.refused("--serve", playground / "nothing")
        settings = playground / "settings.toml"
        good = settings.read_text()
        for bad, reason in (
            (good.replace("port = ", "port : "), "settings.toml"),
            (good.replace("port = ", "no_port = "), "no postgres.port"),
            (good.replace("port = ", "port = 9"), "postgres.port"),
            ("", "no postgres.port"),
        ):
            settings.write_text(bad)
            assert reason in ordinary.refused("--serve", playground)
        settings.write_text(good)

    @pytest.mark.skipif(not IS_ROOT, reason="the playground of somebody else: needs two users")
    def test_is_not_served_by_another_one(self, ordinary, myself):
        theirs = ordinary.home / "theirs"
        (theirs / "server" / "data").mkdir(parents=True)
        (theirs / "settings.toml").write_text("")
        assert "belongs to the user 0" in ordinary.refused("--serve", theirs)


class TestWithoutKeep:
    def test_nothing_is_left_and_no_other_server_is_touched(self, myself):
        """The settings in the environment name a server that is not the demo's; its temporary directory is private."""
        myself.temporary.chmod(0o700)
        other = {
            "AQUAD__POSTGRES__PORT": "9",
            "PGHOSTADDR": "192.0.2.1",
            "PGOPTIONS": "-c nonsense=1",
            "PGSSLMODE": "require",
        }
        demo = myself.start(**other)
        said = until(demo, "2. A full backup")
        (server,) = [path.resolve() for path in myself.temporary.glob("*/server")]
        assert alive(server)
        assert (server.parent == Path("/var/tmp")) == IS_ROOT  # where `nobody` can enter
        code, rest, err = ended(demo)
        assert (code, err) == (0, ""), rest
        assert not server.exists()
        assert alive(server) == []
        assert myself.left() == []
        last_words = rest.partition("nothing is left running")[2]
        assert "make demo KEEP=1" in last_words
        assert str(myself.home) not in last_words
        assert "all 24 equal" in said + rest


class TestSomethingBrokenBehindItsBack:
    def test_exit_1_and_each_is_named(self, myself):
        """And the playground is kept, to look at what is different, where no other user can enter: as in root's home."""
        myself.home.chmod(0o700)
        playground = myself.home / "playground"
        demo = myself.start("--keep", playground)
        until(demo, "configs from ")
        demo.send_signal(signal.SIGSTOP)  # it waits for `aquad restore`, which goes on
        until(demo, "restored ")
        (child,) = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()[-1:]
        wait_for(lambda: Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2].startswith("Z"))
        with connect(playground, "aquastream_db") as connection:
            connection.execute("UPDATE crew.members SET span = span + interval '1 us' WHERE id = 4711")
        (playground / "checkout" / "run.sh").chmod(0o754)
        broken = playground / "volumes" / "zookeeper_data" / "log.0200"
        times = broken.stat().st_atime_ns, broken.stat().st_mtime_ns
        with broken.open("r+b") as file:
            file.seek(100)
            file.write(b"!")
        os.utime(broken, ns=times)
        expected = {"table aquastream_db crew.members", "checkout", "volume zookeeper_data"}
        if IS_ROOT:
            os.chown(playground / "volumes" / "kafka_data" / "meta.properties", 1000, 1002)
            expected.add("volume kafka_data")
        demo.send_signal(signal.SIGCONT)
        code, rest, err = ended(demo)
        assert (code, err) == (1, ""), rest
        assert different(rest) == expected
        assert f"{len(expected)} DIFFERENT" in rest
        assert myself.left() == []

        server = myself.start("--serve", playground)
        until(server, "Ctrl-C ends the server.")
        with connect(playground, "aquastream_db") as connection:
            assert connection.execute("SELECT count(*) FROM crew.members").fetchone() == (10000,)
        assert ended(server, signal.SIGTERM)[0] == 0
        assert myself.left() == []
        data = (playground / "server" / "data").resolve()
        assert data.exists()
        assert (myself.home in data.parents) != IS_ROOT
        assert myself.run(*to_type(rest)[-1]).returncode == 0
        assert not data.exists()
        assert os.listdir(myself.home) == ["tmp"]


def test_a_place_that_cannot_be_written_is_one_line(ordinary):
    done = ordinary.run("--keep", "/proc/playground")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "demo: /proc/playground: No such file or directory\n"


def test_a_server_that_cannot_start_is_one_line(ordinary):
    """The reason itself: the log is gone with the demo."""
    done = ordinary.run("sh", "-c", 'ulimit -f 10000; exec "$0" -m aquad.demo', ordinary.python)
    assert done.returncode == 1
    assert done.stderr.startswith("demo: initdb: ")
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert ordinary.left() == []
