"""Each call is made by a child: what it answers without the filter, and with it."""

import errno
import mmap
import platform
import subprocess
import sys

import pytest

CALLS = {"open_by_handle_at": 265 if platform.machine() == "aarch64" else 304, "io_uring_setup": 425}
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="other ABIs of x86_64 are tried")

ASK = """
import ctypes, mmap, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *words):
    answer = libc.syscall(ctypes.c_long(number), *(ctypes.c_void_p(word) for word in words))
    return -ctypes.get_errno() if answer == -1 else answer
def by_32_bits(number):
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("89f8" "cd80" "c3"))  # mov eax, edi; int 0x80; ret
    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))(number)
def handle_of(path):
    handle = ctypes.create_string_buffer((128).to_bytes(4, "little"), 136)
    mount = ctypes.c_int()
    assert not libc.name_to_handle_at(-100, path.encode(), handle, ctypes.byref(mount), 0), ctypes.get_errno()
    return ctypes.addressof(handle), handle
def opened(path, number):
    address, kept = handle_of(path)
    return call(number, os.open(os.path.dirname(path), os.O_RDONLY), address, os.O_RDONLY)
"""
CONFINE = "from aquad.core.confine import confine; confine()\n"


def child(question, *, confined):
    script = ASK + (CONFINE if confined else "") + question
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip()


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "secret").write_text("by handle")
    return tmp_path / "secret"


def test_no_file_is_opened_by_its_handle(secret):
    ask = f"answer = opened({str(secret)!r}, {CALLS['open_by_handle_at']})\n"
    free = child(ask + "print(os.read(answer, 99).decode() if answer >= 0 else answer)", confined=False)
    assert free in {"by handle", str(-errno.EPERM)}  # the second where this test has not root's capabilities
    assert child(ask + "print(answer)", confined=True) == str(-errno.EPERM)


def test_the_refusal_comes_before_the_kernel_looks_at_the_arguments():
    ask = f"print(call({CALLS['open_by_handle_at']}, -1, 0, 0), call({CALLS['io_uring_setup']}, 0, 0))"
    assert child(ask, confined=False) != f"{-errno.EPERM} {-errno.EPERM}"
    assert child(ask, confined=True) == f"{-errno.EPERM} {-errno.EPERM}"


@needs_x86
def test_the_call_has_no_other_number_through_int_0x80():
    ask = "print(by_32_bits(20) == os.getpid(), by_32_bits(20), by_32_bits(342))"  # getpid, open_by_handle_at
    try:
        free = child(ask, confined=False)
    except AssertionError:
        pytest.skip("this kernel has no 32-bit calls at all")
    assert free.startswith("True")
    assert child(ask, confined=True) == f"False {-errno.EPERM} {-errno.EPERM}"


@needs_x86
def test_the_call_has_no_other_number_by_x32():
    ask = "print(call(0x40000000 | 39), call(0x40000000 | 304, -1, 0, 0))"  # getpid, open_by_handle_at
    assert child(ask, confined=False).split()[0] != str(-errno.EPERM)
    assert child(ask, confined=True) == f"{-errno.EPERM} {-errno.EPERM}"


def test_children_inherit_it_and_cannot_get_rid_of_it():
    inner = ASK + f"print(call({CALLS['open_by_handle_at']}, -1, 0, 0))"
    ask = f"print(subprocess.run(['setpriv', '--', sys.executable, '-c', {inner!r}], capture_output=True, text=True).stdout)"
    assert child(ask, confined=True) == str(-errno.EPERM)


def test_it_stacks_on_a_filter_that_is_there():
    ask = f"confine(); print(call({CALLS['open_by_handle_at']}, -1, 0, 0), open('/proc/self/status').read())"
    said = child(ask, confined=True)
    assert said.startswith(str(-errno.EPERM))
    assert "NoNewPrivs:\t1" in said
    assert "Seccomp:\t2" in said


def test_ordinary_work_goes_on(tmp_path):
    ask = (
        "import hashlib, socket, sqlite3, threading\n"
        f"open({str(tmp_path / 'file')!r}, 'w').write('x' * {mmap.PAGESIZE})\n"
        "thread = threading.Thread(target=lambda: print(socket.socket().fileno() > 0)); thread.start(); thread.join()\n"
        "print(subprocess.run(['sh', '-c', 'echo $((6 * 7)) | cat'], capture_output=True, text=True).stdout)\n"
    )
    assert child(ask, confined=True).split() == ["True", "42"]
    assert (tmp_path / "file").stat().st_size == mmap.PAGESIZE
