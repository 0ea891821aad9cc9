import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.demo.people import IS_ROOT, Person, python_for_nobody


@pytest.fixture(scope="session")
def ordinary_python():
    if not IS_ROOT:
        yield sys.executable
        return
    directory = Path(tempfile.mkdtemp(prefix="aquad-python-"))
    try:
        directory.chmod(0o755)
        yield python_for_nobody(directory)
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def myself():
    """Whoever runs the tests: root, in CI."""
    person = Person(sys.executable, ordinary=False)
    yield person
    person.close()


@pytest.fixture(scope="class")
def ordinary(ordinary_python):
    person = Person(ordinary_python, ordinary=True)
    yield person
    person.close()
