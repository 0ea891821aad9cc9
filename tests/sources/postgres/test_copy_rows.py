"""Rows counted on a stream are the rows of the dump, however it is cut into chunks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aquad.core.errors import SourceFailed
from aquad.sources.postgres.copy_rows import RowCounter

END = b"\n--\n-- PostgreSQL database dump complete\n--\n\n"
ROWS = st.lists(st.sampled_from([b"1\t2", b"", b"\\N", b"\\\\.", b"x\\n\\\\.y", b"-- Data for Name: x"]), max_size=6)
NAMES = st.sampled_from([b"public.a", b'app."We""ird"', b'"a.b"."FROM stdin;"', b"s.t"])


def block(name, rows, columns=b"(a, b)"):
    head = b"\n--\n-- Data for Name: x; Type: TABLE DATA; Schema: s; Owner: o\n--\n\nCOPY %s %s FROM stdin;\n"
    return head % (name, columns) + b"".join(row + b"\n" for row in rows) + b"\\.\n\n"


def counted(text, size):
    counter = RowCounter()
    for start in range(0, len(text), size):
        counter.feed(text[start : start + size])
    counter.check_end()
    return counter.rows()


@given(st.lists(st.tuples(NAMES, ROWS), max_size=4, unique_by=lambda one: one[0]), st.integers(1, 200))
def test_any_chunking(tables, size):
    decoy = b"\nCREATE FUNCTION f() AS $$\nCOPY public.decoy (a) FROM stdin;\n1\n\\.\n$$;\n"
    text = b"--\n-- PostgreSQL database dump\n--\n" + decoy + b"".join(block(name, rows) for name, rows in tables) + END
    assert counted(text, size) == {name.decode(): len(rows) for name, rows in tables}


def test_a_table_that_comes_twice_is_not_counted_rather_than_counted_wrong():
    assert counted(block(b"a.b", [b"1"]) + block(b"a.b", [b"2"]) + END, 1000) == {"a.b": None}


@pytest.mark.parametrize("text", [b"", block(b"a.b", [b"1"]), (block(b"a.b", [b"1"]) + END)[:-20]])
def test_a_dump_without_its_end_is_none(text):
    counter = RowCounter()
    counter.feed(text)
    with pytest.raises(SourceFailed, match="does not end with"):
        counter.check_end()
