"""Real gpg, real keys: what opens a file, what does not, and that nothing is believed too early."""

import os
import subprocess
import threading
import time

import pytest

from aquad.core.errors import ChildFailed, Damaged, WrongKey
from aquad.stream.gpg.envelope import envelope
from aquad.stream.gpg.gpg import Gpg
from aquad.stream.gpg.home import PREFIX, Home
from aquad.stream.gpg.keys import Keys
from tests.keys import KeyRing, secret_file


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    with KeyRing(tmp_path_factory.mktemp("ring")) as ring:
        yield ring


@pytest.fixture
def make(tmp_path):
    """Make a Gpg of some keys; each ends with the test."""
    made = []

    def new(**keys):
        made.append(Gpg(Keys(**keys)))
        return made[-1]

    yield new
    for one in made:
        one.end()


def sealed(gpg, mode, content):
    out = bytearray()
    encrypting = gpg.encrypting(mode, out.extend)
    try:
        for start in range(0, len(content), 1 << 20):
            encrypting.write(content[start : start + (1 << 20)])
        encrypting.finish()
    finally:
        encrypting.end()
    return bytes(out)


def opened(gpg, stored):
    return b"".join(gpg.decrypted(lambda: iter([stored]), "x"))


CONTENT = os.urandom(3 << 20) + b"the end"


class TestPassphrase:
    def test_what_is_encrypted_opens_again_and_by_stock_gpg(self, make, tmp_path):
        secret = secret_file(tmp_path / "pw", "correct horse")
        gpg = make(passphrase_file=secret)
        stored = sealed(gpg, "passphrase", CONTENT)
        assert opened(gpg, stored) == CONTENT
        (tmp_path / "x.gpg").write_bytes(stored)
        with Home() as home:
            done = subprocess.run(
                [
                    "gpg",
                    "--batch",
                    "--pinentry-mode=loopback",
                    f"--passphrase-file={secret}",
                    "--decrypt",
                    tmp_path / "x.gpg",
                ],
                env={**os.environ, "GNUPGHOME": str(home.path)},
                capture_output=True,
                check=True,
            )
        assert done.stdout == CONTENT
        found = envelope(stored)
        assert (found.passphrases, found.ciphers, found.key_ids) == (1, [9], [])

    def test_L1_a_wrong_passphrase_is_said_and_gives_nothing(self, make, tmp_path):
        stored = sealed(make(passphrase_file=secret_file(tmp_path / "a", "right")), "passphrase", CONTENT)
        wrong = make(passphrase_file=secret_file(tmp_path / "b", "wrong"))
        came = []
        with pytest.raises(WrongKey, match="a passphrase"):
            came.extend(wrong.decrypted(lambda: iter([stored]), "x"))
        assert came == []

    def test_L7_an_old_passphrase_opens_what_is_from_before(self, make, tmp_path):
        old, new = secret_file(tmp_path / "old", "2023"), secret_file(tmp_path / "new", "2024")
        stored = sealed(make(passphrase_file=old), "passphrase", CONTENT)
        assert opened(make(passphrase_file=new, old_passphrase_files=[old]), stored) == CONTENT

    @pytest.mark.parametrize(("content", "mode"), [("", 0o600), ("\nx", 0o600), ("fine", 0o604), (None, 0)])
    def test_L1_a_passphrase_file_that_is_none(self, make, tmp_path, content, mode):
        path = tmp_path / "pw"
        if content is not None:
            secret_file(path, content).chmod(mode)
        with pytest.raises(WrongKey, match=str(path)):
            sealed(make(passphrase_file=path), "passphrase", b"x")

    @pytest.mark.parametrize("at", [0, 20, 5000, -20, -1])
    def test_a_flipped_bit_is_found_before_the_end(self, make, tmp_path, at):
        gpg = make(passphrase_file=secret_file(tmp_path / "pw", "x"))
        stored = bytearray(sealed(gpg, "passphrase", CONTENT))
        stored[at] ^= 1
        with pytest.raises((Damaged, WrongKey)):
            opened(gpg, bytes(stored))

    @pytest.mark.parametrize("keep", [0, 1, 100_000, -1])
    def test_a_cut_file_is_found_before_the_end(self, make, tmp_path, keep):
        gpg = make(passphrase_file=secret_file(tmp_path / "pw", "x"))
        stored = sealed(gpg, "passphrase", CONTENT)
        with pytest.raises(Damaged):
            opened(gpg, stored[:keep])

    def test_no_agent_is_left_and_the_home_goes(self, make, tmp_path):
        gpg = make(passphrase_file=secret_file(tmp_path / "pw", "x"))
        gpg.canary("passphrase")
        home = gpg._home.path
        gpg.end()
        assert not home.exists()
        assert not agents_of(home)

    def test_what_the_taker_raises_reaches_the_writer(self, make, tmp_path):
        def full(chunk):
            raise OSError("no space")

        encrypting = make(passphrase_file=secret_file(tmp_path / "pw", "x")).encrypting("passphrase", full)
        try:
            with pytest.raises(OSError, match="no space"):
                encrypting.write(CONTENT * 10)
        finally:
            encrypting.end()

    def test_L4_a_gpg_that_is_killed_is_no_success(self, make, tmp_path):
        encrypting = make(passphrase_file=secret_file(tmp_path / "pw", "x")).encrypting("passphrase", lambda _: None)
        try:
            encrypting.write(CONTENT)
            os.kill(encrypting._call.child.pid, 9)
            with pytest.raises(ChildFailed, match="signal 9"):
                encrypting.write(CONTENT * 10)
        finally:
            encrypting.end()


class TestPublicKeys:
    def test_each_recipient_opens_it_and_this_machine_does_not(self, make, ring):
        public = make(recipients=[ring.alice, ring.bob], public_keys_file=ring.public)
        stored = sealed(public, "public-key", CONTENT)
        assert len(envelope(stored).key_ids) == 2
        with pytest.raises(WrongKey, match="the key"):
            opened(public, stored)
        for private in (ring.private_of(ring.alice), ring.private_of(ring.bob)):
            assert opened(make(private_keys_file=private), stored) == CONTENT
        with pytest.raises(WrongKey):
            opened(make(private_keys_file=ring.private_of(ring.carol)), stored)

    def test_a_protected_private_key_needs_its_passphrase(self, make, ring, tmp_path):
        stored = sealed(make(recipients=[ring.protected], public_keys_file=ring.public), "public-key", CONTENT)
        private = ring.private_of(ring.protected)
        right, wrong = secret_file(tmp_path / "r", ring.PASSPHRASE), secret_file(tmp_path / "w", "guess")
        assert opened(make(private_keys_file=private, passphrase_file=right), stored) == CONTENT
        with pytest.raises(WrongKey):
            opened(make(private_keys_file=private, passphrase_file=wrong), stored)

    @pytest.mark.parametrize(("who", "words"), [("expired", "expired"), ("revoked", "revoked"), ("signing", "encrypt")])
    def test_L1_a_key_that_is_no_longer_good(self, make, ring, who, words):
        gpg = make(recipients=[getattr(ring, who)], public_keys_file=ring.public)
        with pytest.raises(WrongKey, match=words):
            gpg.canary("public-key")

    def test_L1_a_fingerprint_that_is_not_there(self, make, ring):
        gpg = make(recipients=["0" * 40], public_keys_file=ring.public)
        with pytest.raises(WrongKey, match="no key of that fingerprint"):
            gpg.canary("public-key")

    def test_L5_what_is_encrypted_to_somebody_else_too_is_refused(self, make, ring, monkeypatch):
        gpg = make(recipients=[ring.alice], public_keys_file=ring.public)
        real = Home.start
        monkeypatch.setattr(
            Home,
            "start",
            lambda home, arguments, **rest: real(
                home, [*arguments, f"--recipient={ring.bob}"] if "--encrypt" in arguments else arguments, **rest
            ),
        )  # what a gpg.conf or a substituted gpg could do
        with pytest.raises(WrongKey, match="not what was asked for"):
            gpg.canary("public-key")

    def test_the_agent_ends_with_us(self, make, ring):
        gpg = make(private_keys_file=ring.private_of(ring.alice), recipients=[ring.alice], public_keys_file=ring.public)
        gpg.canary("public-key")
        home = gpg._home.path
        gpg.end()
        deadline = time.monotonic() + 10
        while agents_of(home) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not home.exists()
        assert not agents_of(home)


def agents_of(home):
    found = subprocess.run(["pgrep", "-f", str(home)], capture_output=True, text=True, check=False).stdout.split()
    return [pid for pid in found if int(pid) != os.getpid()]


def test_a_home_that_a_killed_process_left_is_removed(tmp_path):
    with Home() as mine:
        left = mine.path.with_name(f"{PREFIX}left")
        left.mkdir(mode=0o700, exist_ok=True)
        (left / "private").write_text("secret")
        os.utime(left, (0, 0))
        os.utime(mine.path, (0, 0))
        with Home():
            assert not left.exists()
            assert mine.path.exists(), "it is in use"


def test_several_streams_at_once(make, tmp_path):
    gpg = make(passphrase_file=secret_file(tmp_path / "pw", "x"))
    outs = [bytearray(), bytearray()]
    streams = [gpg.encrypting("passphrase", out.extend) for out in outs]
    threads = [threading.Thread(target=stream.write, args=(CONTENT,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for stream in streams:
        stream.finish()
        stream.end()
    assert [opened(gpg, bytes(out)) for out in outs] == [CONTENT, CONTENT]
