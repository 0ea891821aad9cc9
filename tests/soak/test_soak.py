"""Two weeks of it, with more accidents than a year has. `make soak` is the year."""

from datetime import UTC, datetime, timedelta

from tests.soak.judge import ACCIDENTS, judged
from tests.soak.world import World

DAYS = 14


def test_two_weeks(tmp_path, shared_server):
    begin = datetime(2025, 3, 21, 12, tzinfo=UTC)  # with the change to summer time
    world = World(tmp_path, shared_server, begin, 7, {name: 2 * often for name, often in ACCIDENTS.items()})
    try:
        world.live_until(begin + timedelta(days=DAYS))
        assert judged(world, begin) == []
        assert len(world.happened) >= 4, world.happened
    finally:
        world.end()
