import sqlite3
import sys
from pathlib import Path

import pytest

from loopline.control import pushes, registry
from loopline.testing import boxes
from loopline.testing.fleet import Fleet
from loopline.testing.world import World

sys.path.insert(0, str(Path(__file__).parent))

import reader

LOOP = boxes.LOOP + '\n[endpoint]\nname = "boxes"\n'


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world in which one version went the whole way to an endpoint."""
    folder = tmp_path_factory.mktemp("loop")
    world = World(folder)
    push = pushes.run(world.ctx, world.actor, tree=world.tree(boxes.project(loop_toml=LOOP)))
    ended = boxes.follow(world, push["id"])
    assert ended["status"] == "Succeeded", ended["reason"]
    registry.approve(world.ctx, world.actor, model="boxes", number=1, comment="good")
    fleet = Fleet(world.ctx)

    def served() -> bool:
        fleet.act()
        return not reader.unfinished(database) and bool(
            reader.rows(database, "SELECT 1 FROM rollouts WHERE status = 'Succeeded'")
        )

    database = reader.open_database(folder)
    world.settle(served)
    world.settle(lambda: not list(reader.consumers_keep_up(database, folder)))
    database.close()
    world.close()
    return folder


@pytest.fixture
def copy(installation: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    with sqlite3.connect(installation / "loopline.db") as source, sqlite3.connect(tmp_path / "loopline.db") as target:
        source.backup(target)
        for (trigger,) in target.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            target.execute(f"DROP TRIGGER {trigger}")  # they would not let the log be spoiled
    (tmp_path / "snapshot.json").write_bytes((installation / "snapshot.json").read_bytes())
    return tmp_path


def spoil(folder: Path, sql: str) -> list[str]:
    with sqlite3.connect(folder / "loopline.db") as database:
        assert database.execute(sql).rowcount != 0
    return reader.check(folder, 0.0)


def test_a_loop_that_went_well_satisfies_every_invariant(copy: Path) -> None:
    assert reader.check(copy, 0.0) == []


SPOILED: dict[str, str] = {
    "versions_are_numbered": "UPDATE models SET last_version = 2",
    "register_steps_have_one_version": "UPDATE versions SET execution = NULL",
    "decisions_are_whole": "UPDATE versions SET decided_by = NULL",
    "only_approved_is_released": "DELETE FROM events WHERE noun = 'version' AND after = 'Approved'",
    "results_are_recorded_once": "UPDATE attempts SET status = 'Failed'",
    "events_are_whole": "UPDATE steps SET status = 'Failed' WHERE name = 'fit'",
    "first_statuses_are_never_committed": "UPDATE events SET at = at + 1 WHERE noun = 'execution' AND kind = 'moved'",
    "audit_chain_holds": "UPDATE events SET reason = 'another' WHERE number = 3",
    "weights_are_whole": "UPDATE variants SET weight = 60",
    "aliases_follow_traffic": "UPDATE variants SET number = 7",
    "snapshot_is_published": "INSERT INTO snapshots (at, body, by) VALUES (1, '{}', 'x')",
    "queue_moves": "INSERT INTO queue (kind, key, run_at, token, tries, again) VALUES ('x', 'y', 1, 0, 0, 0)",
    "consumers_keep_up": "DELETE FROM audit WHERE number = (SELECT max(number) FROM audit)",
    "leases_are_of_the_living": """INSERT INTO queue (kind, key, run_at, owner, lease_until, token, tries, again)
                                   VALUES ('x', 'y', 1, 'host:4194305.1.b:tasks-0', 9e12, 0, 0, 0)""",
}


@pytest.mark.parametrize("rule", sorted(SPOILED))
def test_each_invariant_finds_what_breaks_it(rule: str, copy: Path) -> None:
    found = spoil(copy, SPOILED[rule])
    assert any(problem.startswith(f"{rule}: ") for problem in found), found


def test_every_invariant_has_a_way_to_break_it() -> None:
    needs_two = {"one_rollout_at_a_time"}
    assert {rule.__name__ for rule in (*reader.ALWAYS, *reader.SOON)} == set(SPOILED) | needs_two


def test_two_rollouts_of_an_endpoint_are_found(copy: Path) -> None:
    with sqlite3.connect(copy / "loopline.db") as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(rollouts)")]
        others = ", ".join(column for column in columns if column not in ("id", "status"))
        for name in ("ro_a", "ro_b"):
            database.execute(
                f"INSERT INTO rollouts (id, status, {others}) SELECT '{name}', 'Baking', {others} FROM rollouts LIMIT 1"
            )
    assert any(problem.startswith("one_rollout_at_a_time: 2 ") for problem in reader.check(copy, 0.0))


def test_an_answer_of_another_version_is_wrong(copy: Path) -> None:
    answers = [{"status": 200, "version": 1, "mark": 5}, {"status": 200, "version": 2, "mark": 5}]
    assert reader.wrong_answers(answers, {1: 5, 2: 6}) == ["an answer of version 2 bore 5 in place of 6 (1 times)"]
    assert reader.outages([*answers, {"status": 503}, {"status": "ConnectionResetError"}]) == {
        "503": 1,
        "ConnectionResetError": 1,
    }
