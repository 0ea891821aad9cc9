"""A dump is cut where psql would cut it, whatever the chunking."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aquad.sources.postgres.dumps import ABOUT
from aquad.sources.postgres.script import Piece, pieces


def cut(text, size=None):
    chunks = [text[i : i + size] for i in range(0, len(text), size)] if size else [text]
    return list(pieces(chunks))


def commands(text, size=None):
    return [piece.text for piece in cut(text, size) if piece.kind == "command"]


QUIET = rb"""SELECT '
\not this';
SELECT E'\'
\nor this';
SELECT "
\nor ""
\this";
CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $body$
\nor this $$
\x
$other$
$body$;
SELECT a$b$c, $$
\no
$$;
-- ' a quote in a comment
/* " and
\in this one */
COPY public.t (a) FROM stdin;
\N
\\connect x
'
\.
"""


@pytest.mark.parametrize("size", [None, 1, 7, 64])
def test_quoted_text_comments_and_rows_hold_no_commands(size):
    assert commands(QUIET, size) == []
    assert commands(b"\\first line\n" + QUIET + b"\\connect shop\nSELECT 1;\n\\last", size) == [
        b"\\first line",
        b"\\connect shop",
        b"\\last",
    ]


@pytest.mark.parametrize("size", [None, 1, 100])
def test_rows_are_told_from_statements(size):
    found = cut(
        b'SET x = 1;\nCOPY a.b (c, "d;") FROM stdin;\n1;\\N\n2\n\\.\n\nCOPY e.f FROM stdin;\n\\.\nSELECT 1;\n', size
    )
    rows = [piece.text for piece in found if piece.kind == "rows"]
    assert b"".join(rows) == b"\n1;\\N\n2\n\\." + b"\n\\."
    assert [re.sub(rb"\s+", b" ", piece.text).strip() for piece in found if piece.kind == "statement"][:3] == [
        b"SET x = 1;",
        b'COPY a.b (c, "d;") FROM stdin;',
        b"COPY e.f FROM stdin;",
    ]


@given(
    st.lists(
        st.sampled_from(
            [
                b"'",
                b'"',
                b"$$",
                b"$a$",
                b"\\",
                b"\n",
                b"\n\\c x\n",
                b";",
                b"--",
                b"/*",
                b"*/",
                b"E'",
                b"COPY a.b FROM stdin;\n",
                b"1\t2\n",
                b"\\.\n",
                b"word ",
            ]
        ),
        max_size=40,
    ),
    st.integers(1, 9),
)
def test_any_chunking_gives_the_same_cut_and_loses_nothing(words, size):
    text = b"".join(words)
    joined = lambda found: [(p.kind, p.text) for p in merged(found)]
    assert joined(cut(text, size)) == joined(cut(text))
    assert b"".join(p.text for p in cut(text)) == b"\n" + text


def merged(found):
    out = []
    for piece in found:
        if piece.kind == "more" and out and out[-1].kind in {"statement", "more"}:
            out[-1] = Piece(out[-1].kind, out[-1].text + piece.text)
        elif piece.kind == "rows" and out and out[-1].kind == "rows":
            out[-1] = Piece("rows", out[-1].text + piece.text)
        else:
            out.append(piece)
    return out


def test_a_long_literal_is_handed_on_in_pieces():
    text = b"SELECT lowrite(0, '" + b"ab" * 3_000_000 + b"');\nSELECT 2;\n"
    found = cut(text, 1 << 16)
    assert b"".join(piece.text for piece in found) == b"\n" + text
    assert max(len(piece.text) for piece in found) < 2 << 20
    assert [piece.kind for piece in found if b"SELECT" in piece.text] == ["statement", "statement"]


def test_many_comments_before_a_statement_cost_no_more_than_their_length():
    """An expression that could match them in several ways would take longer than the universe lasts."""
    text = b"/* a */ -- b\n" * 2000 + b"SELECT 1;\n" + b"/* a */" * 2000 + b"DROP DATABASE"
    assert b"".join(piece.text for piece in cut(text)) == b"\n" + text
    assert ABOUT.match(text) is None
    assert ABOUT.match(b"/* a */ -- b\n" * 2000 + b"DROP /**/ DATABASE x;")["name"] == b"x"
