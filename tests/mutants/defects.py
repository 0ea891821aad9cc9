"""The defects: what a tired founder might write one day. `old` stands once in the file."""

from typing import NamedTuple


class Defect(NamedTuple):
    """`tests`: arguments for pytest, of which at least one test has to fail. `every_point`: a sample of faults is not enough."""

    id: str
    title: str
    path: str
    old: str
    new: str
    tests: str
    every_point: bool = False


DEFECTS = (
    Defect(
        "fsync-of-files",
        "a file is not brought to the disk before its name",
        "aquad/storage/files.py",
        '    with _failing("fsync", path):\n        os.fsync(fd)\n',
        "    del fd, path\n",
        "tests/repository tests/faults",
    ),
    Defect(
        "fsync-of-directories",
        "names do not survive a power cut",
        "aquad/storage/files.py",
        "            os.fsync(fd)\n        finally:",
        "            pass\n        finally:",
        "tests/faults/test_power_cut.py -k restoring_elsewhere",
        every_point=True,
    ),
    Defect(
        "manifest-before-data",
        "the manifest is put in place before the files it names",
        "aquad/repository/repository.py",
        "        draft.sync_directories()\n        files.replace(draft.path / NAMES,",
        "        files.replace(self.layout.manifest(draft.id), rendered)\n        draft.sync_directories()\n        files.replace(draft.path / NAMES,",
        "tests/faults/test_fork_sweep.py",
    ),
    Defect(
        "promises-forgotten",
        "recovery leaves what a dead run had renamed",
        "aquad/repository/recovery.py",
        "move = [name for name in draft.promised if name in there and name not in owned]",
        "move: list[str] = []",
        "tests/faults/test_fork_sweep.py",
    ),
    Defect(
        "child-status-ignored",
        "a child that failed passes for one that did its work",
        "aquad/core/process.py",
        "        status = self._wait()\n        if status:",
        "        status = self._wait()\n        if status > 128:",
        "tests/core tests/stream/test_gpg.py tests/sources/postgres",
    ),
    Defect(
        "stuck-child-waited-for",
        "a child that says nothing any more is waited for until the run's deadline",
        "aquad/core/process.py",
        "now - last_byte_at > self._stall_seconds:",
        "now < last_byte_at:",
        "tests/core --timeout=30",
    ),
    Defect(
        "answer-waited-for",
        "a server that does not answer is waited for for ever",
        "aquad/sources/postgres/server.py",
        "            if not ready and until is not None and time.monotonic() > until:\n",
        "            if not ready and until is not None and time.monotonic() < 0:\n",
        "tests/sources/postgres/test_toxic.py -k stuck_before --timeout=30",
    ),
    Defect(
        "short-read-trusted",
        "a stored file that ends too early is no error",
        "aquad/repository/plain.py",
        '    if left:\n        raise Damaged(\n            f"read {path}: {left} bytes are missing',
        '    if left and left < 0:\n        raise Damaged(\n            f"read {path}: {left} bytes are missing',
        "tests/repository tests/stream tests/sources/test_volumes.py",
    ),
    Defect(
        "copied-without-hashing",
        "a member of the previous archive is copied whatever its bytes are",
        "aquad/stream/tarball/reuse.py",
        'if digest.hexdigest() != line["stored_xxh3"]:',
        "if not digest:",
        "tests/sources/test_unchanged.py",
    ),
    Defect(
        "copied-without-sync",
        "pages are not clean when a file is read",
        "aquad/stream/tarball/reuse.py",
        "        filesystem.sync(fd)\n",
        "        pass\n",
        "tests/sources/test_unchanged.py",
    ),
    Defect(
        "age-from-the-end-of-the-sync",
        "a store during the sync passes for one before it",
        "aquad/stream/tarball/reuse.py",
        "\n    return began\n",
        "\n    return time.time_ns()\n",
        "tests/sources/test_unchanged.py",
    ),
    Defect(
        "listing-as-verification",
        "parts of a dump are not inflated when content is verified",
        "aquad/jobs/verify.py",
        '        _expect(name, "plain bytes", total - before, part.plain_bytes)\n        position',
        "        position",
        "tests/repository tests/faults/test_corruption.py tests/cli",
    ),
    Defect(
        "digest-not-compared",
        "stored bytes are read and not compared",
        "aquad/repository/reader.py",
        "        if digest.hexdigest() != file.stored_sha256:",
        "        if not digest:",
        "tests/faults/test_corruption.py",
    ),
    Defect(
        "not-read-back",
        "what the disk holds is not compared with what was written",
        "aquad/repository/hashed.py",
        "        if self._xxh3.digest() != xxh3:",
        "        if not xxh3:",
        "tests/repository",
    ),
    Defect(
        "lock-released-early",
        "the run works on after its lock is free",
        "aquad/repository/lock.py",
        "        files.write(fd, json.dumps(holder).encode(), path)\n        yield fd\n",
        "        files.write(fd, json.dumps(holder).encode(), path)\n        fcntl.flock(fd, fcntl.LOCK_UN)\n        yield fd\n",
        "tests/repository tests/cli/test_commands.py",
    ),
    Defect(
        "dump-without-its-end",
        "a dump that was cut off passes for a whole one",
        "aquad/sources/postgres/copy_rows.py",
        "        if TRAILER not in self._tail or self._table is not None:",
        "        if self._table is not None:",
        "tests/sources/postgres",
    ),
    Defect(
        "rows-not-compared",
        "a restored database is swapped in whatever it holds",
        "aquad/sources/postgres/restore.py",
        "                if found != sealed and not",
        "                if found < 0 and not",
        "tests/sources/postgres",
    ),
    Defect(
        "content-not-compared",
        "a restored file is not compared with the index",
        "aquad/stream/tarball/unpack.py",
        '            if data is None and digest.hexdigest() != member.line.get("sha256"):',
        "            if data is None and not digest:",
        "tests/stream tests/sources/test_volumes.py",
    ),
    Defect(
        "gpg-believed-early",
        "bytes of an encrypted file are used before gpg vouched for all of them",
        "aquad/repository/plain.py",
        '        """Have gpg open all of it, once. Raises WrongKey and Damaged."""\n        if self._proved:\n            return\n',
        '        """Have gpg open all of it, once. Raises WrongKey and Damaged."""\n        if self._gpg:\n            return\n',
        "tests/repository/test_plain.py",
    ),
    Defect(
        "no-canary",
        "a run begins without a probe of its key",
        "aquad/jobs/full.py",
        "    repository.encryption.prove()\n",
        "",
        "tests/cli/test_encryption.py",
    ),
    Defect(
        "success-by-default",
        "a run with a failed component is a success",
        "aquad/jobs/full.py",
        '    if failed:\n        return Work("failed", "; ".join(failed), details)\n',
        "",
        "tests/repository tests/cli/test_commands.py",
    ),
    Defect(
        "path-that-leaves",
        "'..' in a member's path is not refused",
        "aquad/stream/tarball/tree.py",
        'b".."',
        'b"..."',
        "tests/stream",
    ),
)
