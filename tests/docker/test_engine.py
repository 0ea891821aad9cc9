import pytest

from tests.servers.engine import BASE


@pytest.fixture(scope="module")
def project(engine, tmp_path_factory):
    file = engine.up("aqengine", {"kafka": {}, "nginx": {}}, tmp_path_factory.mktemp("project"))
    yield "aqengine"
    engine.compose("aqengine", [file], "down", "-v")


def test_the_services_of_a_project_run_and_carry_its_labels(engine, project):
    labels = engine.inspect(f"{project}-kafka-1")["Config"]["Labels"]
    assert labels["com.docker.compose.project"] == project
    assert labels["com.docker.compose.service"] == "kafka"


def test_a_container_is_frozen_and_goes_on(engine, project):
    engine.docker("pause", f"{project}-nginx-1")
    assert engine.inspect(f"{project}-nginx-1")["State"]["Paused"]
    engine.docker("unpause", f"{project}-nginx-1")
    assert not engine.inspect(f"{project}-nginx-1")["State"]["Paused"]


def test_a_killed_engine_starts_again_and_its_containers_have_ended(engine, project):
    engine.docker("pause", f"{project}-nginx-1")
    engine.kill()
    engine.start()
    assert engine.inspect(f"{project}-nginx-1")["State"]["Status"] == "exited"
    assert engine.docker("run", "--rm", BASE, "cat", "/etc/debian_version").startswith("12.")
