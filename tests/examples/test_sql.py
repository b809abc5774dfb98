"""SQL: answers that two ways of asking agree on, copies that part, statements that cannot get out or go on for ever."""

import copy
import doctest
import pickle
import re
import threading
import time
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest

from agent_envs import UnknownTask
from agent_envs.task import SPLITS, normalise_question, split_of
from agent_envs.testing import check_agent_env
from agent_envs.tool import call_tool
from examples import sql
from examples.sql import ShopTasks, Sql

ID = "examples.sql:Sql-v0"
COUNT = "SELECT count(*) FROM orders"


@pytest.fixture
def tool():
    made = Sql(timeout=1.0)
    made.reset(ShopTasks().get(next_id()), np.random.default_rng(0))
    yield made
    made.close()


def next_id(seed=0, split="train"):
    return ShopTasks().sample(np.random.default_rng(seed), split).id


def ask(tool, statement):
    return call_tool(tool, {"statement": statement})


@pytest.mark.parametrize("split", SPLITS)
def test_what_sql_finds_is_what_the_rows_say(split):
    env = gym.make(ID, split=split)
    kinds = Counter()
    for seed in range(60):
        observation, _ = env.reset(seed=seed)
        expert, over, info = env.unwrapped.oracle(), False, {}
        while not over:
            observation, reward, over, _, info = env.step(expert(observation))
        assert (reward, info["success"]) == (1.0, True), env.unwrapped.task
        kinds[env.unwrapped.task.metadata["kind"]] += 1
    assert len(kinds) == 4
    env.close()


def test_tasks_are_made_again_from_their_ids_and_splits_share_no_question():
    source, seen = ShopTasks(), {}
    for split in SPLITS:
        for seed in range(150):
            task = source.sample(np.random.default_rng(seed), split)
            assert source.get(task.id) == task
            assert split_of(task.question) == split
            assert seen.setdefault(normalise_question(task.question), split) == split


@pytest.mark.parametrize("task_id", ["", "shop:1:spent:Nobody Here", "shop:1:steal:Ada Fox", "shop:x:spent:Ada Fox"])
def test_ids_of_no_task(task_id):
    with pytest.raises(UnknownTask, match="a task id of the shop reads"):
        ShopTasks().get(task_id)


def test_an_unknown_split():
    with pytest.raises(UnknownTask, match="'dev'"):
        ShopTasks().sample(np.random.default_rng(0), "dev")


def test_the_policy_is_told_the_tables_and_gets_rows_under_names(tool):
    tables = dict(re.findall(r"(\w+)\(([\w, ]+)\)", tool.description))
    assert set(tables) == {"customers", "products", "orders"}
    for table, columns in tables.items():
        lines = ask(tool, f"SELECT * FROM {table} LIMIT 3").text.split("\n")
        assert lines[0].split(" | ") == columns.split(", ")
        assert len(lines) == 4
    assert ask(tool, "SELECT NULL AS none, 1.5 AS half").text == "none | half\nNULL | 1.5"


def test_a_change_stays_and_a_copy_goes_its_own_way(tool):
    assert ask(tool, "DELETE FROM orders WHERE id > 50").text == "(10 rows changed)"
    twin = tool.fork()
    assert ask(twin, COUNT) == ask(tool, COUNT)
    ask(twin, "DELETE FROM orders")
    ask(tool, "CREATE TABLE notes AS SELECT 'mine' AS note")
    assert ask(twin, COUNT).text.endswith("\n0")
    assert ask(tool, COUNT).text.endswith("\n50")
    assert ask(twin, "SELECT * FROM notes").fault == "error"
    tool.close()
    assert ask(twin, "SELECT count(*) FROM products").text.endswith("\n8")
    assert ask(twin, "ATTACH 'x' AS x").fault == "error"  # a copy is guarded as well
    twin.close()
    twin.close()


@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH '{}' AS other",
        "VACUUM INTO '{}'",
        "SELECT load_extension('{}')",
        "SELECT writefile('{}', 'x')",
        "PRAGMA writable_schema = 1",
        "PRAGMA max_page_count = 1000000",
        "SELECT * FROM pragma_database_list",
        "BEGIN",
        "SAVEPOINT here",
        "CREATE TEMP TABLE t (a)",
        "CREATE TRIGGER t AFTER DELETE ON orders BEGIN SELECT 1; END",
        "CREATE VIRTUAL TABLE t USING fts5(a)",
        "SELECT random()",
        "SELECT current_timestamp",
        "SELECT datetime('now')",
        "SELECT last_insert_rowid()",
        "SELECT 1; SELECT 2",
        "SELECT 'a\0b'",
        "SELECT CAST(x'ff' AS TEXT)",
        "SELECT nothing",
        "x" * 100_000,
        "(" * 9_000,
    ],
)
def test_what_a_statement_may_not_do_is_the_policys_to_read(tool, statement, tmp_path):
    before = ask(tool, COUNT)
    result = ask(tool, statement.format(tmp_path / "file"))
    assert result.fault == "error"
    assert result.text
    assert not list(tmp_path.iterdir())
    assert ask(tool, COUNT) == before


@pytest.mark.parametrize("statement", ["{}", "DELETE FROM orders WHERE id IN ({})", "CREATE TABLE t AS {}"])
def test_a_statement_that_goes_on_for_ever_is_stopped_and_changes_nothing(tool, statement):
    before, begin = ask(tool, COUNT), time.monotonic()
    result = ask(tool, statement.format(Sql.endless["statement"]))
    assert result.fault == "timeout"
    assert result.text == "stopped after 1 s; nothing was changed"
    assert time.monotonic() - begin < 10
    assert ask(tool, COUNT) == before


def test_it_cannot_grow_without_end(tool):
    row = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT printf('%9000d', i) AS a FROM n"
    assert ask(tool, f"CREATE TABLE t AS {row}").text.endswith("is full")
    assert ask(tool, "SELECT group_concat(printf('%9000d', id)) FROM orders").text.endswith("too big")
    assert ask(tool, row).text.endswith("\n[more rows]")
    assert len(ask(tool, "SELECT a.id FROM orders a, orders b").text.split("\n")) == 52


def test_an_episode_may_move_to_another_thread():
    env = gym.make(ID)
    observation, _ = env.reset(seed=0)
    seen = []

    def go_on():
        twin = copy.deepcopy(env)
        seen.extend(each.step("<sql>SELECT count(*) AS n FROM orders</sql>")[0] for each in (env, twin))
        twin.close()
        env.close()

    thread = threading.Thread(target=go_on)
    thread.start()
    thread.join()
    assert seen == ["n\n60", "n\n60"]
    assert pickle.loads(pickle.dumps(env.unwrapped)).reset(seed=0)[0] == observation


def test_its_docstrings_are_right():
    assert doctest.testmod(sql).failed == 0


def test_it_keeps_an_environments_promises():
    check_agent_env(ID, profile="quick", verbose=False).raise_if_broken()
