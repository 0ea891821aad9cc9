import pytest

from tests.daemon.live import Live


@pytest.fixture
def live(tmp_path, shared_server):
    with shared_server.connect() as connection:
        connection.execute("DROP DATABASE IF EXISTS shop WITH (FORCE)")
        connection.execute("CREATE DATABASE shop")
    with shared_server.connect("shop") as connection:
        connection.execute("CREATE TABLE items AS SELECT i, 'item ' || i AS name FROM generate_series(1, 1000) i")
    return Live(tmp_path, shared_server)
