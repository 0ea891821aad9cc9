"""A RawFile over a plain file, and a Reader over what it wrote."""

import os

from aquad.repository.plain import file_chunks
from aquad.stream.artifact import StoredArtifact


class IndexedFile:
    is_clear, shares_blocks = True, False

    def __init__(self, path):
        self._file = open(path, "wb")
        self.members_ = []
        self._at = 0

    def write(self, stored):
        self._file.write(stored)
        self._at += len(stored)

    def tell(self):
        return self._at

    def copy_from(self, fd, offset, length, stored, xxh3):
        self.write(os.pread(fd, length, offset))

    def record(self, member):
        self.members_.append(dict(member))

    def finish(self, *, plain_bytes, facts):
        self._file.close()


class IndexedReader:
    sealed = True

    def __init__(self, path, lines, facts=None):
        self._path = path
        self.lines = lines
        self.origin = "test"
        self.facts = facts or {}
        self.artifacts = [StoredArtifact(path.name, True, path.stat().st_size, 0, [], {})]

    def read(self, path, offset=0, length=None):
        return file_chunks(self._path, offset, length)

    def descriptor(self, path):
        return os.open(self._path, os.O_RDONLY)

    def forwards_only(self, path):
        return False

    def members(self, path):
        return iter(self.lines)
