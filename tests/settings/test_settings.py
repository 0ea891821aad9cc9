"""N1: bad settings end in one error that names everything, never in another exception."""

import os
import subprocess
import sys
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aquad.core.errors import SettingsInvalid
from aquad.settings import Settings, generate, load
from aquad.wiring import Wiring

GOOD = generate()
LINES = GOOD.splitlines()


def loaded(tmp_path, text, environ=None):
    path = tmp_path / "settings.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return load(path, environ or {})


def refused(tmp_path, text, environ=None):
    with pytest.raises(SettingsInvalid) as caught:
        loaded(tmp_path, text, environ)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_generated_file_gives_the_defaults_and_is_the_committed_one(tmp_path):
    assert (
        loaded(tmp_path, GOOD).settings
        == Settings()
        == load(None, {"AQUAD_CONFIG": str(tmp_path / "settings.toml")}).settings
    )
    assert (Path(__file__).parents[2] / "settings.toml").read_text() == GOOD
    assert all("#" in line for line in LINES if " = " in line and not line.startswith("#"))


def test_the_environment_goes_before_the_file(tmp_path):
    environ = {
        "AQUAD__POSTGRES__PORT": "6000",
        "AQUAD__POSTGRES__DATABASES": '["a"]',
        "AQUAD__VOLUMES__DATA__PATH": "/srv/x",
        "AQUAD__STACK": "other",
        "PATH": "/bin",
    }
    result = loaded(tmp_path, 'stack = "mine"\n[postgres]\nhost = "db"\n', environ)
    assert (result.settings.stack, result.settings.postgres.port, result.settings.postgres.databases) == (
        "other",
        6000,
        ["a"],
    )
    assert result.settings.volumes["data"].path == Path("/srv/x")
    assert result.origins["postgres.port"] == "environment AQUAD__POSTGRES__PORT"
    assert result.origins["postgres.host"].endswith("settings.toml:3")


def test_the_environment_can_set_a_volume_that_has_no_default(tmp_path):
    """Booleans and whole tables are JSON under any name, not only under the names of AquaStream's volumes."""
    environ = {
        "AQUAD__VOLUMES__DATA__PATH": "/srv/x",
        "AQUAD__VOLUMES__DATA__MAY_SHRINK": "true",
        "AQUAD__VOLUMES__UPLOADS": '{"path": "/srv/y"}',
    }
    volumes = loaded(tmp_path, "", environ).settings.volumes
    assert volumes["data"].may_shrink
    assert volumes["uploads"].path == Path("/srv/y")


def test_a_table_from_the_environment_replaces_the_one_in_the_file_and_its_origins(tmp_path):
    environ = {"AQUAD__LIMITS__DEADLINE": '{"full": "2h"}'}
    result = loaded(tmp_path, '[limits]\ndeadline = { full = "4h", postgres = "3h" }\n', environ)
    deadline = result.settings.limits.deadline
    assert (deadline["full"], deadline["postgres"]) == (timedelta(hours=2), timedelta(hours=1))
    assert result.origins == {"limits.deadline": "environment AQUAD__LIMITS__DEADLINE"}


def test_what_a_table_does_not_name_keeps_its_default(tmp_path):
    """A hung weekly has to end, also where somebody gives the full backup more time."""
    settings = loaded(
        tmp_path, '[limits]\ndeadline = { full = "6h" }\n[objectives]\nrpo = { postgres = "1h" }\n'
    ).settings
    defaults = Settings()
    assert settings.limits.deadline == {**defaults.limits.deadline, "full": timedelta(hours=6)}
    assert settings.objectives.rpo == {**defaults.objectives.rpo, "postgres": timedelta(hours=1)}
    assert settings.objectives.rto == defaults.objectives.rto


def test_all_mistakes_at_once_each_with_its_line(tmp_path):
    said = refused(
        tmp_path,
        'stak = "x"\n[postgres]\nport = "no"\nhots = "h"\n[schedule]\nfull = "61 2 * * *"\n',
        {"AQUAD__LIMITS__STALL": "soon"},
    )
    assert "4 mistakes" not in said
    for part in (
        ":1: stak: there is no such key; did you mean stack?",
        ":3: postgres.port: 'no'",
        "did you mean host?",
        ":6: schedule.full: '61 2 * * *'",
        "environment AQUAD__LIMITS__STALL: limits.stall: 'soon'",
    ):
        assert part in said, (part, said)


BAD = [
    ('[web]\nlisten = "9480"', "an address and a port"),
    ('[web]\nlisten = "0.0.0.0:99999"', "an address and a port"),
    ('[web]\nlisten = "a b:1"', "an address and a port"),
    ('[alerts.email]\nto = ["admin"]', "a mail address"),
    ("[alerts.email]\nto = []", "alerts.email.to"),
    ('[alerts.email]\nsender = "A <a@b>"', "a mail address"),
    ('[alerts.email]\nsender = "a@b\\nBcc: c@d"', "a mail address"),
    ('[alerts.email]\nuser = "u"', "password_file must be set"),
    ('[alerts.email]\nuser = "u"\npassword_file = "/x"\ntls = "off"', "tls must be starttls or tls"),
    ('[alerts.email]\ntls = "ssl"', "alerts.email.tls"),
    ('[alerts.slack]\nlevels = ["info"]', "alerts.slack.levels"),
    ('[alerts.slack]\nwebhook_url = "https://secret"', "did you mean webhook_url_file?"),
    ('[alerts.ping]\nurl_file = "relative"', "absolute path"),
    ("[alerts.pager]", "alerts.pager: there is no such key"),
    ('stack = ""', "stack"),
    ('stack = "../x"', "stack"),
    ("stack = 7", "stack"),
    ('time_zone = "Mars/Phobos"', "time_zone"),
    ('[repository]\npath = "relative"', "absolute path"),
    ('[repository]\npath = "/"', "not / itself"),
    ('[repository]\npath = "/a/../b"', "absolute path"),
    ('[repository]\nminimum_free = "150%"', "10%"),
    ('[repository]\nminimum_free = "lots"', "20GB"),
    ("[repository]\nminimum_free = 7", "minimum_free"),
    ('[encryption]\nmode = "rot13"', "encryption.mode"),
    ('[encryption]\nmode = "passphrase"\npassphrase_file = ""', "passphrase_file must be set"),
    ('[encryption]\nmode = "public-key"', "recipients and public_keys_file must be set"),
    ('[encryption]\nrecipients = ["ABCD1234"]', "encryption.recipients"),
    ('[schedule]\nfull = "* * * *"', "five fields"),
    ('[schedule]\nfull = "@daily"', "five fields"),
    ('[schedule]\nfull = "0 24 * * *"', "five fields"),
    ('[schedule]\nfull = "*/0 * * * *"', "five fields"),
    ('[schedule]\nfull = "5-3 * * * *"', "five fields"),
    ('[schedule]\nfull = "٣ * * * *"', "five fields"),
    ('[schedule]\nfull = "0 0 2 * * *"', "five fields"),
    (
        '[schedule]\nfull = "0 2 30 2 *"',
        ":2: schedule.full: '0 2 30 2 *'; allowed is a day of the month that its months",
    ),
    ('[schedule]\nfull = "0 2 31 4,6,9,11 *"', "a day of the month that its months have"),
    ('[schedule]\nfull = "0 2 0 * *"', "five fields"),
    ('[schedule]\nfull = "* * * * *"', "5 minutes or more from one firing to the next"),
    ('[schedule]\nfull = "*/4 2 * * *"', "5 minutes or more from one firing to the next"),
    ('[schedule]\nfull = "*/90 * * * *"', "minute 0-59"),
    ('[schedule]\nverify = "0,58 * * * *"', ":2: schedule.verify"),
    ('[limits]\nstall = "0s"', "90s"),
    ('[limits]\nstall = "-5s"', "90s"),
    ('[limits]\nstall = "5 minutes"', "90s"),
    ("[limits]\nstall = 60", "90s"),
    ('[limits]\ndeadline = { full = "never" }', "limits.deadline.full"),
    ('[limits]\ndeadline = { fulll = "4h" }', "full, weekly, postgres, cleanup, verify, restore or prune"),
    ("[retention]\nminimum_verified = 0", "minimum_verified"),
    ("[retention]\nminimum_verified = 1.5", "minimum_verified"),
    ("[retention]\nminimum_verified = true", "minimum_verified"),
    ("[postgres]\nport = 0", "postgres.port"),
    ("[postgres]\nport = 70000", "postgres.port"),
    ("[postgres]\nport = 99999999999999999999999999", "port"),
    ('[postgres]\nhost = "a\\nb"', "control characters"),
    ('[postgres]\nhost = ""', "postgres.host"),
    ('[postgres]\ndatabases = "one"', "postgres.databases"),
    ("[postgres]\ndatabases = [1]", "postgres.databases"),
    ('[configs]\npaths = ["/etc/passwd"]', "relative to configs.root"),
    ('[configs]\npaths = ["../../etc"]', "relative to configs.root"),
    ('[volumes.x]\npath = "rel"', "volumes.x.path"),
    ("[volumes.x]\nservice = 'a'", "volumes.x.path: must be set"),
    ('[volumes.x]\npath = "/a"\nquiesce = "freeze"', "volumes.x.quiesce"),
    ('[volumes.postgres]\npath = "/a"', "component of its own"),
    ('[volumes."../evil"]\npath = "/a"', "volumes"),
    ('[volumes."A B"]\npath = "/a"', "volumes"),
    ("volumes = 3", "volumes"),
    ("postgres = []", "postgres"),
    ('[objectives]\nrpo = { postgres = "x" }', "objectives.rpo.postgres"),
    ("[nonsense]\na = 1", "nonsense"),
    ("a = ", "not TOML"),
    ("stack = 'a'\nstack = 'b'", "not TOML"),
    ("x = nan", "x: there is no such key"),
    ("a = " + "[" * 3000, "not TOML"),
    (b"\xff\xfe", "not UTF-8"),
    (b"\xef\xbb\xbfstack = 'x'", "not TOML"),
    ("#" + "x" * (1 << 20), "1 MiB"),
]


@pytest.mark.parametrize("rule", ["*/5 * * * *", "0 2 29 2 */7", "0 2 30 2 1", "0,58 2 * * 0,7", "  0  2 * * *", "off"])
def test_H8_rare_and_dense_rules_are_kept_as_they_stand(tmp_path, rule):
    assert loaded(tmp_path, f'[schedule]\nfull = "{rule}"').settings.schedule.full == " ".join(rule.split())


@pytest.mark.parametrize(("text", "part"), BAD, ids=range(len(BAD)))
def test_N1_bad_settings_say_what_is_wrong(tmp_path, text, part):
    assert part in refused(tmp_path, text)


def test_secrets_are_never_shown(tmp_path):
    said = refused(
        tmp_path,
        '[postgres]\npassword = "hunter2"\n[alerts]\nwebhook = "https://hunter2"\n',
        {"AQUAD__POSTGRES__PASSWORD": "hunter2", "AQUAD__API_TOKEN": "hunter2"},
    )
    assert "hunter2" not in said
    assert "password_file" in said
    assert "hunter2" not in refused(tmp_path, "", {"AQUAD__POSTGRES": '{"password": "hunter2"}'})
    assert "hunter2" not in refused(tmp_path, "", {"AQUAD__POSTGRES": "hunter2"})
    assert "hunter2" not in refused(tmp_path, 'configs = [{ password = "hunter2" }]\n')


def test_a_missing_directory_and_unreadable_file(tmp_path):
    for path in (tmp_path / "no", tmp_path):
        with pytest.raises(SettingsInvalid, match=str(path)):
            load(path, {})


garbage = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["..", "/", "1d", "-1s", "0 2 * * *", "'", '"', "{", "\0", "é" * 70]),
)


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.data())
def test_N1_a_thousand_mutated_files_never_crash(tmp_path, data):
    lines = list(LINES)
    for _ in range(data.draw(st.integers(1, 4))):
        number = data.draw(st.integers(0, len(lines) - 1))
        key = lines[number].partition(" = ")[0]
        match data.draw(st.integers(0, 4)):
            case 0:
                lines[number] = f"{key} = {data.draw(garbage)!r}"
            case 1:
                lines[number] = data.draw(st.text(max_size=40))
            case 2:
                lines[number] = f"{key}{data.draw(st.text('abc_.', min_size=1, max_size=3))} = 1"
            case 3:
                lines.insert(number, lines[data.draw(st.integers(0, len(lines) - 1))])
            case 4:
                value = data.draw(
                    st.recursive(
                        garbage,
                        lambda inner: (
                            st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inner, max_size=3)
                        ),
                        max_leaves=6,
                    )
                )
                lines[number] = f"{key} = {_toml(value)}"
    try:
        result = loaded(tmp_path, "\n".join(lines))
    except SettingsInvalid as error:
        assert str(error)
    else:
        assert isinstance(result.settings, Settings)


def _toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value).lower() if isinstance(value, bool | float) or value is None else repr(value)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "POSTGRES__PORT",
                "STACK",
                "VOLUMES",
                "VOLUMES__A__PATH",
                "STACK__A__B",
                "",
                "__",
                "CONFIGS__PATHS",
                "LIMITS__DEADLINE",
            ]
        ),
        st.text(max_size=30),
    )
)
def test_N1_any_environment_never_crashes(environ):
    try:
        load(None, {f"AQUAD__{key}": value for key, value in environ.items()})
    except SettingsInvalid as error:
        assert str(error)


@pytest.mark.parametrize("number", range(0, 40, 2))
def test_N1_twenty_as_processes_exit_2_without_a_traceback(tmp_path, number):
    text, part = BAD[number]
    (tmp_path / "s.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    before = sorted(os.listdir(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "aquad", "-c", tmp_path / "s.toml", "run", "full"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert part in done.stderr
    assert sorted(os.listdir(tmp_path)) == before


def test_the_committed_file_is_toml():
    assert tomllib.loads(GOOD)["stack"] == "aquastream"


@pytest.mark.parametrize(
    ("jobs", "days"), [('full = "0 2 * * 1,3"', 5), ('full = "off"', 7), ('full = "off"\nweekly = "off"', 1)]
)
def test_a_weekly_archive_is_a_full_backup_too_where_no_other_is_taken(tmp_path, jobs, days):
    wiring = Wiring(loaded(tmp_path, f"[schedule]\n{jobs}\n"), "test")
    assert wiring.pruning().policy.period == timedelta(days=days)
