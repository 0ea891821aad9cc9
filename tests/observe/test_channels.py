"""M1: each channel against a real server that takes, refuses, hangs, or is not who it says it is."""

import datetime as dt
import gc
import socket
import sys

import pytest

from aquad.observe import channels
from aquad.observe.channels import Apprise, DeliveryFailed, Email, Ping, Slack
from aquad.observe.messages import Section, Text
from tests.servers.hooks import MODES, Hooks
from tests.servers.mail import Certificates, Mail
from tests.servers.ports import free_port

TEXT = Text("critical", "aquastream: CRITICAL run of full failed", [Section("What happened", ["no space", "<b>&amp;"])])
LEVELS = ("warning", "critical")


pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def sockets_of_libraries():
    """smtplib, slack-sdk and Apprise leave those of failed connections to the collector: here, and not in another test."""
    yield
    gc.collect()


@pytest.fixture
def certificates(tmp_path):
    return Certificates(tmp_path)


def secret(tmp_path, text):
    path = tmp_path / f"secret {len(list(tmp_path.iterdir()))}"
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def mail_of(tmp_path, certificates):
    def make(server, **more):
        known = {
            "levels": LEVELS,
            "host": "localhost",
            "port": server.port,
            "tls": "starttls",
            "user": "aquad",
            "password_file": secret(tmp_path, "mail secret"),
            "sender": "aquad@company.com",
            "recipients": ["admin@company.com", "boss@company.com"],
            "ca_file": certificates.file,
        }
        return Email(**{**known, **more})

    return make


def refused(channel):
    with pytest.raises(DeliveryFailed) as caught:
        channel.send(TEXT)
    return str(caught.value)


class TestEmail:
    @pytest.mark.parametrize("tls", ["starttls", "tls"])
    def test_with_a_login_it_arrives_as_text_and_as_html(self, certificates, mail_of, tls):
        with Mail(certificates.context("localhost"), tls) as server:
            assert mail_of(server, tls=tls).send(TEXT) == ""
        (message,) = server.messages
        assert (message["Subject"], message["To"]) == (TEXT.title, "admin@company.com, boss@company.com")
        assert message["Auto-Submitted"] == "auto-generated"
        assert "<b>&amp;" in message.get_body(("plain",)).get_content()
        assert "&lt;b&gt;&amp;amp;" in message.get_body(("html",)).get_content()

    def test_without_tls_where_there_is_no_password(self, mail_of):
        with Mail(tls="off", login=None) as server:
            assert mail_of(server, tls="off", user="").send(TEXT) == ""
        assert len(server.messages) == 1

    @pytest.mark.parametrize("answer", ["451 come back later", "550 we do not like you", "421 closing"])
    def test_M1_a_server_that_refuses(self, certificates, mail_of, answer):
        with Mail(certificates.context("localhost")) as server:
            server.answer = answer
            assert f"it answers {answer}" in refused(mail_of(server))

    def test_a_wrong_password_is_said_and_not_shown(self, tmp_path, certificates, mail_of):
        with Mail(certificates.context("localhost")) as server:
            said = refused(mail_of(server, password_file=secret(tmp_path, "another password")))
        assert "it answers 535" in said
        assert "another password" not in said

    def test_M1_a_server_that_hangs(self, certificates, mail_of, monkeypatch):
        monkeypatch.setattr(channels, "ANSWER_SECONDS", 0.5)
        with Mail(certificates.context("localhost")) as server:
            server.answer = "hang"
            assert "no answer within 0.5 s" in refused(mail_of(server))
        with socket.create_server(("127.0.0.1", 0)) as silent:
            said = refused(mail_of(type("At", (), {"port": silent.getsockname()[1]})))
        assert "no answer within 0.5 s" in said

    def test_nobody_is_there(self, mail_of):
        assert "Connection refused" in refused(mail_of(type("At", (), {"port": free_port()})))

    def test_TLS_of_another_authority_name_or_time_is_refused(self, tmp_path, certificates, mail_of):
        past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
        (tmp_path / "other").mkdir()
        other = Certificates(tmp_path / "other")
        for context, why in (
            (other.context("localhost"), "unable to get local issuer certificate"),
            (certificates.context("mail.example.org"), "Hostname mismatch"),
            (certificates.context("localhost", not_before=past, not_after=past.replace(year=2021)), "has expired"),
        ):
            for tls in ("starttls", "tls"):
                with Mail(context, tls) as server:
                    said = refused(mail_of(server, tls=tls))
                assert "its certificate is not good" in said
                assert why in said
                assert server.messages == []

    def test_a_server_that_offers_no_tls_gets_no_password(self, mail_of):
        with Mail(tls="off", login=("aquad", "mail secret")) as server:
            assert "STARTTLS extension not supported" in refused(mail_of(server))
            assert server.messages == []

    def test_M4_a_title_with_line_ends_makes_no_header(self, certificates, mail_of):
        with Mail(certificates.context("localhost")) as server:
            evil = TEXT._replace(title="x\r\nBcc: thief@example.com")
            with pytest.raises(DeliveryFailed):
                mail_of(server).send(evil)
            assert server.messages == []

    def test_check_logs_in_and_sends_nothing(self, certificates, mail_of):
        with Mail(certificates.context("localhost")) as server:
            assert mail_of(server).check() == f"localhost:{server.port} answers and takes the login of aquad"
            with pytest.raises(DeliveryFailed):
                mail_of(server, user="somebody").check()
        assert server.messages == []

    def test_a_password_file_that_is_open_to_others_is_not_used(self, tmp_path, certificates, mail_of):
        path = secret(tmp_path, "mail secret")
        path.chmod(0o644)
        with Mail(certificates.context("localhost")) as server:
            assert "its mode is 0644, open to others. Run: chmod 600" in refused(mail_of(server, password_file=path))


class TestSlack:
    def slack(self, tmp_path, hooks):
        return Slack(LEVELS, secret(tmp_path, hooks.url))

    def test_blocks_of_plain_text_arrive(self, tmp_path):
        with Hooks() as hooks:
            assert self.slack(tmp_path, hooks).send(TEXT) == ""
        (taken,) = hooks.taken
        assert {block["text"]["type"] for block in taken["blocks"]} == {"plain_text"}
        assert "no space\n<b>&amp;" in hooks.text()
        assert taken["text"] == TEXT.title

    @pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "ok"])
    def test_M1_what_is_not_an_ok_is_no_delivery(self, tmp_path, mode):
        with Hooks() as hooks:
            hooks.mode = mode
            with pytest.raises(DeliveryFailed) as caught:
                self.slack(tmp_path, hooks).send(TEXT)
        assert f"it answers {MODES[mode][0]}" in str(caught.value)
        assert caught.value.retry_after_seconds == (30 if mode == "busy" else 0)
        assert "verysecret" not in str(caught.value)

    def test_M1_it_hangs_or_is_not_there(self, tmp_path, monkeypatch):
        monkeypatch.setattr(channels, "ANSWER_SECONDS", 1.0)
        with Hooks() as hooks:
            hooks.mode = "hang"
            assert "no answer within 1 s" in refused(self.slack(tmp_path, hooks))
        said = refused(self.slack(tmp_path, hooks))
        assert "Connection refused" in said
        assert "verysecret" not in said

    def test_a_certificate_that_nobody_signed(self, tmp_path, certificates):
        with Hooks(certificates.context("127.0.0.1")) as hooks:
            assert "its certificate is not good" in refused(self.slack(tmp_path, hooks))
        assert hooks.taken == []

    @pytest.mark.parametrize("url", ["", "not a url", "file:///etc/passwd", "ftp://127.0.0.1/x"])
    def test_what_is_no_address_is_no_delivery(self, tmp_path, url):
        assert refused(Slack(LEVELS, secret(tmp_path, url)))

    def test_check_reads_the_address_and_sends_nothing(self, tmp_path):
        with Hooks() as hooks:
            assert "only `aquad alerts test slack`" in self.slack(tmp_path, hooks).check()
        assert hooks.taken == []
        with pytest.raises(DeliveryFailed):
            Slack(LEVELS, tmp_path / "none").check()

    def test_no_file(self, tmp_path):
        assert "No such file or directory. Is it mounted" in refused(Slack(LEVELS, tmp_path / "none"))


class TestPing:
    def test_it_is_called(self, tmp_path):
        with Hooks() as hooks:
            assert Ping(secret(tmp_path, hooks.url)).send(TEXT) == ""
            assert hooks.pings == 1
            hooks.mode = "broken"
            said = refused(Ping(secret(tmp_path, hooks.url)))
        assert "500" in said
        assert "verysecret" not in said

    def test_only_http(self, tmp_path):
        assert "holds no https:// or http:// address" in refused(Ping(secret(tmp_path, "file:///etc/passwd")))


class TestApprise:
    def test_a_short_text_arrives(self, tmp_path):
        """By the simplest of its services: JSON to a URL."""
        with Hooks() as hooks:
            url = hooks.url.replace("http://", "json://")
            assert Apprise(("critical",), secret(tmp_path, url)).send(TEXT) == ""
        assert hooks.taken[0]["message"].startswith(TEXT.title)

    def test_a_refusal_is_said(self, tmp_path):
        with Hooks() as hooks:
            hooks.mode = "broken"
            said = refused(Apprise(("critical",), secret(tmp_path, hooks.url.replace("http://", "json://"))))
        assert "send by Apprise" in said
        assert "verysecret" not in said

    def test_no_url_that_it_knows(self, tmp_path):
        assert "holds no URL that it knows" in refused(Apprise((), secret(tmp_path, "smoke://signals")))

    def test_without_the_extra_it_says_how_to_get_it(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "apprise", None)
        assert "pip install 'aquad[sms]'" in refused(Apprise((), secret(tmp_path, "json://localhost")))
