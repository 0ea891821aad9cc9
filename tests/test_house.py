"""The house rules that a linter does not know."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "aquad").rglob("*.py"))
MAY_CATCH_ALL = {"jobs/run.py"}


def test_modules_are_short():
    long = {str(path): count for path in MODULES if (count := len(path.read_text().splitlines())) > 350}
    assert long == {}


def test_functions_are_short():
    long = [
        f"{path.name}:{node.lineno} {node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno - node.lineno + 1) > 50
    ]
    assert long == []


def test_only_runs_catch_everything():
    broad = [
        f"{path}:{node.lineno}"
        for path in MODULES
        if str(path.relative_to(ROOT / "aquad")) not in MAY_CATCH_ALL
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}))
    ]
    assert broad == []


def test_every_suppression_has_its_reason():
    bare = [
        f"{path}:{number}"
        for path in MODULES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"# (noqa|type: ignore)", line)
        and not re.search(r"# (noqa|type: ignore)\S* ?\S+( [A-Z]+\d+,?)* - \S", line)
    ]
    assert bare == []


def test_every_requirement_is_pinned_by_hash_and_names_no_registry():
    for path in sorted((ROOT / "requirements").rglob("*.txt")):
        text = path.read_text()
        pins = re.findall(r"^[A-Za-z0-9_.\-\[\]]+==\S+", text, re.MULTILINE)
        lines = re.sub(r"\\\n", " ", text).splitlines()
        assert pins, path
        assert all("--hash=sha256:" in line for line in lines if re.match(r"[A-Za-z]", line)), path
        assert not re.search(r"https?://|--index-url", text), path


def test_no_module_has_not_found_its_name():
    assert [path for path in MODULES if path.stem in {"utils", "common", "helpers", "manager", "base"}] == []
