import pytest

from tests.servers.postgres import Server


@pytest.fixture(scope="session")
def shared_server():
    """One PostgreSQL 16 for a whole test process: tests make databases of their own in it."""
    server = Server(16).start()
    yield server
    server.close()


@pytest.fixture
def new_server():
    """A factory of fresh servers of any major."""
    made = []

    def make(major=16):
        made.append(Server(major))
        return made[-1].start()

    yield make
    for server in made:
        server.close()
