"""A filter of system calls for this process and all that it starts, which no later privilege lifts.

CAP_DAC_READ_SEARCH is there so that volumes can be read. It also opens any file of a file system by its handle, past every
mount, and Docker's own filter lets it. This one refuses that call, io_uring (what is done there no filter sees), and every
call by another ABI than the machine's own (32 bits through `int 0x80`, x32), where the same calls have other numbers.
It needs no privilege, and filters that are there already stay.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from aquad.core.errors import AquadError

REFUSED = {
    "x86_64": (0xC000003E, {"open_by_handle_at": 304, "io_uring_setup": 425}),
    "aarch64": (0xC00000B7, {"open_by_handle_at": 265, "io_uring_setup": 425}),
}
"""By machine: the kernel's number of its own ABI, and numbers of calls."""
FOREIGN_FROM = 0x40000000
"""x32 calls share the ABI's number with x86_64, and have this bit; no machine has calls of its own so high."""

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, ANSWER = 0x20, 0x15, 0x35, 0x06
CALL_AT, ABI_AT = 0, 4
ALLOWED, REFUSAL = 0x7FFF0000, 0x00050000 | errno.EPERM


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def confine() -> None:
    """From here on what is refused answers EPERM, in children too. Call it while there is one thread. Raises AquadError."""
    machine = platform.machine()
    if machine not in REFUSED:
        raise AquadError(
            f"confine aquad: the machine is {machine}", f"The image is for {' and '.join(REFUSED)}; run it there."
        )
    instructions = _filter(*REFUSED[machine])
    program = _Program(len(instructions) // 8, instructions)
    _prctl(PR_SET_NO_NEW_PRIVS, 1, 0)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))


def _filter(abi: int, calls: dict[str, int]) -> bytes:
    """Classic BPF: each jump says how many instructions to leave out when it is true, and when it is false."""
    to_refusal = len(calls) + 1
    steps = [
        (LOAD_WORD, 0, 0, ABI_AT),
        (JUMP_IF_EQUAL, 0, to_refusal + 2, abi),
        (LOAD_WORD, 0, 0, CALL_AT),
        (JUMP_IF_AT_LEAST, to_refusal, 0, FOREIGN_FROM),
        *((JUMP_IF_EQUAL, to_refusal - 1 - index, 0, number) for index, number in enumerate(calls.values())),
        (ANSWER, 0, 0, ALLOWED),
        (ANSWER, 0, 0, REFUSAL),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _prctl(option: int, first: int, second: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(word) for word in (first, second, 0, 0)]
    if libc.prctl(option, *words):
        reason = os.strerror(ctypes.get_errno())
        raise AquadError(
            f"confine aquad: prctl {option}: {reason}", "The kernel needs seccomp filters (CONFIG_SECCOMP_FILTER)."
        )
