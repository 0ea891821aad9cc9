import pytest

from tests.cli.test_commands import Stack


@pytest.fixture
def stack(tmp_path, shared_server):
    stack = Stack(tmp_path, shared_server)
    with shared_server.connect() as connection:
        connection.execute("DROP DATABASE IF EXISTS shop WITH (FORCE)")
        connection.execute("CREATE DATABASE shop")
    with shared_server.connect("shop") as connection:
        connection.execute("CREATE TABLE items AS SELECT i, 'item ' || i AS name FROM generate_series(1, 1000) i")
    stack.settings.write_text(stack.settings.read_text().replace("[postgres]", '[postgres]\ndatabases = ["shop"]'))
    stack.ok("init")
    yield stack
    with shared_server.connect() as connection:  # what restores kept, and half-made ones: other tests dump this server
        for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datname ~ '^(aquad_new_|shop)'"):
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
