"""What is measured against what; goals and limits."""

from typing import NamedTuple


class Pair(NamedTuple):
    """`a` and `b` name what a round measures."""

    id: str
    title: str
    goal: float
    fail: float
    a: str
    b: str


PAIRS = (
    Pair("V1", "first volume backup / tar -czf", 0.08, 0.15, "aquad volume", "tar"),
    Pair(
        "V2", "first volume backup, 8 x / (cat to /dev/null + write the output)", 2.0, 3.0, "aquad large", "cat large"
    ),
    Pair("V3", "second volume backup, 2 % changed / tar -czf", 0.015, 0.03, "aquad second", "tar"),
    Pair(
        "V3c", "the same / cp of the archive, sync, and reading the copy from the disk", 1.5, 3.0, "aquad second", "cp"
    ),
    Pair("V4", "second volume backup, 2 % changed / restic's", 1.3, 2.0, "aquad second", "restic second"),
    Pair("V4g", "the same, 8 x", 1.3, 2.0, "aquad large second", "restic large second"),
    Pair("V6", "size of the .tar.gz / tar -czf", 1.06, 1.10, "aquad volume size", "tar size"),
    Pair("D1", "PostgreSQL dump / pg_dumpall piped to gzip", 0.25, 0.40, "aquad postgres", "pg_dumpall"),
    Pair("D2", "PostgreSQL dump / pg_dump > /dev/null", 1.15, 1.40, "aquad postgres", "pg_dump"),
    Pair("D3", "size of the .sql.gz / gzip -6", 1.15, 1.20, "aquad postgres size", "pg_dumpall size"),
    Pair(
        "E1",
        "encrypted PostgreSQL dump / the same unencrypted",
        1.10,
        1.25,
        "aquad postgres encrypted",
        "aquad postgres",
    ),
    Pair("X1", "verify --level content of a volume / sha256sum, then gunzip -t", 0.5, 0.8, "aquad verify", "gunzip"),
    Pair("C1", "aquad --help / python -c pass", 5, 7, "aquad --help", "python"),
    Pair("C3", "peak memory of a run, MB", 100, 150, "aquad peak", "one"),
    Pair("G1", "first volume backup, 8 x / 1 x", 8.5, 8.5, "aquad large", "aquad volume"),
    Pair("G2", "its peak memory, 8 x / 1 x", 1.1, 1.2, "aquad large peak", "aquad volume peak"),
)
