"""SQL on a small shop's database: a tool with state, and tasks of one's own. From the repository's root:

    import gymnasium as gym
    env = gym.make("examples.sql:Sql-v0")

- `Sql` is a tool with state. ``reset`` opens a database, ``fork`` copies it, ``close`` lets go of it; what the policy is
  told comes from its docstring and the types of ``run``.
- `ShopTasks` makes shops and questions from a seed. The answers are worked out in Python from the rows, and the oracle finds
  them by SQL, so that each checks the other.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import gymnasium as gym
import numpy as np

from agent_envs import Answer, Call, Move, Task, TaskSource, Tool, ToolEnv, ToolResult, UnknownTask
from agent_envs.task import Oracle, split_of
from agent_envs.verifiers.qa import QAVerifier

gym.register("Sql-v0", "examples.sql:environment")


def environment(split: str = "train", timeout: float = 2.0) -> ToolEnv:
    """``Sql-v0``.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        timeout: Seconds that one statement may take.
    """
    return ToolEnv(tasks=ShopTasks(), tools=[Sql(timeout)], verifier=QAVerifier("em"), split=split, max_turns=6)


# --- the tool

_ACTIONS = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_RECURSIVE,
        sqlite3.SQLITE_INSERT,
        sqlite3.SQLITE_UPDATE,
        sqlite3.SQLITE_DELETE,
        sqlite3.SQLITE_CREATE_TABLE,
        sqlite3.SQLITE_DROP_TABLE,
        sqlite3.SQLITE_CREATE_VIEW,
        sqlite3.SQLITE_DROP_VIEW,
    }
)
"""What a statement may do. Not among it: files (ATTACH, VACUUM INTO), and whatever a copy of the database would not have,
such as temporary tables, open transactions and a connection's settings (PRAGMA)."""

_FUNCTIONS = re.compile(
    "abs|avg|coalesce|count|format|glob|group_concat|ifnull|iif|instr|length|like|lower|ltrim|max|min|nullif|printf|rank|"
    "replace|round|row_number|rtrim|sign|substr|substring|sum|total|trim|typeof|upper"
)
"""Functions that give the same each time; ``random`` and the clock's are not among them."""

_LENGTH = 10_000  # characters of a statement, bytes of a value
_PAGES = 2_000  # of 4 KiB, in the whole database
_ROWS = 50  # of a result


class Sql(Tool):
    """Runs one SQL statement on the shop's SQLite database and gives back the rows, with the columns' names first. Tables:
    customers(id, name, city), products(id, name, price), orders(id, customer_id, product_id, quantity).

    Args:
        timeout: Seconds that one statement may take.
    """

    policy_errors = (sqlite3.Error, sqlite3.Warning)
    examples = (
        {"statement": "SELECT city, count(*) FROM customers GROUP BY city ORDER BY city"},
        {"statement": "UPDATE products SET price = price + 1 RETURNING name, price"},
        {"statement": "SELECT nothing"},
    )
    endless: Mapping[str, str] = MappingProxyType(
        {"statement": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"}
    )

    def __init__(self, timeout: float = 2.0) -> None:
        self.timeout: float = timeout
        self._database: sqlite3.Connection | None = None

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        """Opens the database of the task's shop."""
        self.close()
        self._database = _open()
        make_shop(task.metadata["shop"]).write(self._database)
        _guard(self._database)

    def run(self, statement: str) -> ToolResult | str:
        """Runs a statement; what SQLite has against it is the policy's to read.

        Args:
            statement: SQL, as SQLite has it.
        """
        assert self._database is not None, "reset() opens the database"
        deadline = time.monotonic() + self.timeout
        self._database.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
        try:
            with contextlib.closing(self._database.execute(statement)) as cursor:
                return _table(cursor)
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                return ToolResult(f"stopped after {self.timeout:g} s; nothing was changed", "timeout")
            raise

    def fork(self) -> Sql:
        """A tool with a copy of the whole database."""
        twin = type(self)(self.timeout)
        if self._database is not None:
            twin._database = _open()
            self._database.backup(twin._database)
            _guard(twin._database)
        return twin

    def close(self) -> None:
        """Forgets the database."""
        if self._database is not None:
            self._database.close()
        self._database = None


def _open() -> sqlite3.Connection:
    # An episode may move from thread to thread but is in one at a time. Without an isolation level each statement stands
    # by itself, and no transaction is left open.
    database = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    database.execute(f"PRAGMA max_page_count = {_PAGES}")
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, _LENGTH),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, _LENGTH),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100),
    ):
        database.setlimit(limit, value)
    return database


def _guard(database: sqlite3.Connection) -> None:
    """From now on statements are the agent's."""

    def allow(action: int, first: str | None, second: str | None, schema: str | None, trigger: str | None) -> int:
        harmless = action == sqlite3.SQLITE_FUNCTION and _FUNCTIONS.fullmatch(second or "")
        allowed = action in _ACTIONS or harmless
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    database.set_authorizer(allow)


def _table(cursor: sqlite3.Cursor) -> str:
    """What a statement gave, as the policy reads it."""
    rows = cursor.fetchmany(_ROWS + 1)
    if cursor.description is None:
        return f"({cursor.rowcount} rows changed)" if cursor.rowcount >= 0 else "(done)"
    lines = [[column[0] for column in cursor.description], *rows[:_ROWS]]
    text = "\n".join(" | ".join("NULL" if cell is None else str(cell) for cell in line) for line in lines)
    return text + "\n[more rows]" * (len(rows) > _ROWS)


# --- the tasks

_FIRST = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gita", "Hugo", "Iris", "Jan", "Kim", "Leo", "Mia", "Noor", "Pia")
_LAST = ("Adler", "Brown", "Costa", "Dean", "Evans", "Fox", "Gray", "Hale", "Ito", "Jones", "Khan", "Lund", "Marsh", "Nash")
_CITIES = ("Bergen", "Cork", "Dover", "Essen", "Faro", "Ghent", "Havre", "Izmir", "Jena", "Kiel", "Leeds", "Malmo")
_PRODUCTS = ("lamp", "chair", "table", "clock", "shelf", "mirror", "carpet", "vase", "stool", "desk", "bench", "candle")


@dataclass(frozen=True)
class Shop:
    """The rows of a shop's three tables, in the order of their columns."""

    customers: tuple[tuple[int, str, str], ...]
    products: tuple[tuple[int, str, int], ...]
    orders: tuple[tuple[int, int, int, int], ...]

    def write(self, database: sqlite3.Connection) -> None:
        """Makes the tables."""
        database.execute("CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT)")
        database.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, price INTEGER)")
        database.execute(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER, product_id INTEGER, quantity INTEGER)"
        )
        database.executemany("INSERT INTO customers VALUES (?, ?, ?)", self.customers)
        database.executemany("INSERT INTO products VALUES (?, ?, ?)", self.products)
        database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", self.orders)


def make_shop(number: int) -> Shop:
    """The shop of a number: 12 customers, 8 products, 60 orders."""
    rng = np.random.default_rng(number)
    names = [f"{_FIRST[i % len(_FIRST)]} {_LAST[i // len(_FIRST)]}" for i in rng.permutation(len(_FIRST) * len(_LAST))]
    cities = [_CITIES[i] for i in rng.permutation(len(_CITIES))[:4]]
    products = [_PRODUCTS[i] for i in rng.permutation(len(_PRODUCTS))[:8]]
    return Shop(
        tuple((i, names[i], cities[int(rng.integers(4))]) for i in range(1, 13)),
        tuple((i, name, int(rng.integers(2, 100))) for i, name in enumerate(products, 1)),
        tuple((i, int(rng.integers(1, 13)), int(rng.integers(1, 9)), int(rng.integers(1, 6))) for i in range(1, 61)),
    )


_WORTH = "SELECT sum(quantity * price) AS worth FROM orders JOIN products ON products.id = product_id"
_BY = "customer_id = (SELECT id FROM customers WHERE name = '{}')"
_KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "spent": ("How much has {} spent in all?", f"{_WORTH} WHERE {_BY}"),
        "favourite": (
            "Of which product has {} ordered the largest quantity?",
            f"SELECT name FROM orders JOIN products ON products.id = product_id WHERE {_BY} "
            "GROUP BY product_id ORDER BY sum(quantity) DESC LIMIT 1",
        ),
        "city": (
            "How many orders come from the city that {} lives in?",
            "SELECT count(*) FROM orders JOIN customers ON customers.id = customer_id "
            "WHERE city = (SELECT city FROM customers WHERE name = '{}')",
        ),
        "returns": (
            "{} sends everything back: delete those orders. How much are the other orders worth?",
            f"DELETE FROM orders WHERE {_BY}",
            _WORTH,
        ),
    }
)
"""Kinds of questions about a customer: the wording, then the statements that answer it."""


class ShopTasks(TaskSource):
    """Questions about a shop's customers. An id reads ``shop:NUMBER:KIND:NAME``, such as ``shop:7:spent:Ada Fox``.

    Example:
        >>> task = ShopTasks().sample(np.random.default_rng(0), "train")
        >>> ShopTasks().get(task.id) == task
        True
    """

    name = "shop"

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        """Draws shops and questions until one belongs to the split."""
        if split not in self.splits:
            raise UnknownTask(f"tasks {self.name!r} have the splits {list(self.splits)}, found {split!r}")
        while True:
            number, kind = int(rng.integers(2**31)), list(_KINDS)[int(rng.integers(len(_KINDS)))]
            names = _buyers(make_shop(number))
            customer = names[int(rng.integers(len(names)))]
            if split_of(_KINDS[kind][0].format(customer)) == split:
                return self.get(f"shop:{number}:{kind}:{customer}")

    def get(self, task_id: str) -> Task:
        """The task that the id spells out."""
        match = re.fullmatch(r"shop:([0-9]{1,10}):([a-z]+):([A-Za-z ]+)", task_id)
        if match and match[2] in _KINDS:
            shop, kind, customer = make_shop(int(match[1])), match[2], match[3]
            if customer in _buyers(shop):
                about = {"shop": int(match[1]), "kind": kind, "customer": customer}
                return Task(task_id, _KINDS[kind][0].format(customer), _answers(shop, kind, customer), about)
        raise UnknownTask(
            f"a task id of the shop reads 'shop:NUMBER:KIND:NAME' with a kind of {list(_KINDS)} and a customer of that shop "
            f"who has ordered something, found {task_id!r}"
        )

    def oracle(self, task: Task) -> Oracle:
        """Sends the statements of the question's kind, then answers with the last cell that came back."""
        statements = [text.format(task.metadata["customer"]) for text in _KINDS[task.metadata["kind"]][1:]]

        def expert(observation: str) -> Move:
            if observation == task.question:
                return Call("sql", {"statement": statements[0]})
            if observation.endswith("rows changed)"):
                return Call("sql", {"statement": statements[-1]})
            return Answer(observation.split("\n")[-1])

        return expert


def _buyers(shop: Shop) -> list[str]:
    """The customers who have ordered something."""
    buyers = {customer for _, customer, _, _ in shop.orders}
    return [name for number, name, _ in shop.customers if number in buyers]


def _answers(shop: Shop, kind: str, customer: str) -> tuple[str, ...]:
    """The right answers; several where products share the first place."""
    cities = {name: city for _, name, city in shop.customers}
    names = {number: name for number, name, _ in shop.customers}
    products = {number: (name, price) for number, name, price in shop.products}
    orders = [(names[buyer], *products[product], quantity) for _, buyer, product, quantity in shop.orders]
    if kind == "spent":
        return (str(sum(price * quantity for name, _, price, quantity in orders if name == customer)),)
    if kind == "returns":
        return (str(sum(price * quantity for name, _, price, quantity in orders if name != customer)),)
    if kind == "city":
        return (str(sum(cities[name] == cities[customer] for name, *_ in orders)),)
    totals: Counter[str] = Counter()
    for name, product, _, quantity in orders:
        totals[product] += quantity * (name == customer)
    return tuple(product for product, total in totals.items() if total == max(totals.values()))
