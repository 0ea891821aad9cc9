import pytest

from tests.servers.engine import Engine, reason_missing


@pytest.fixture(scope="session")
def engine():
    """One Docker Engine for all tests of this directory, which run one after the other in one process."""
    if reason := reason_missing():
        pytest.skip(reason)
    with Engine() as running:
        yield running
