import pytest
from xdist.scheduler import LoadFileScheduling

from tests.servers.postgres import Server

ONE_ENGINE = "tests/docker/"


class _OneEngine(LoadFileScheduling):
    """By file; but only one Docker Engine can run on a machine, so its tests stay together, and begin first: they take longest."""

    def _split_scope(self, nodeid):
        return ONE_ENGINE if nodeid.startswith(ONE_ENGINE) else super()._split_scope(nodeid)

    def _assign_work_unit(self, node):
        if ONE_ENGINE in self.workqueue:
            self.workqueue.move_to_end(ONE_ENGINE, last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return _OneEngine(config, log) if config.getoption("dist") == "loadfile" else None


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
