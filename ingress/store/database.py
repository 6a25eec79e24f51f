"""Where the service remembers what must outlast it: one SQL database, shared by all gateways."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Double, MetaData, Table, event, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql.functions import FunctionElement

from engine.protocol import Unavailable

logger = logging.getLogger(__name__)

BUSY_SECONDS = 10
"""How long a statement waits for another process that writes to the same SQLite file."""

DRIVERS = {"sqlite": "aiosqlite", "postgresql": "asyncpg"}
"""What speaks to each kind of database."""

TABLES_LOCK = 0x41_74_65_6C_69_65_72
"""The advisory lock that PostgreSQL's tables are made under. Any number that others do not use."""

metadata = MetaData()
"""The tables. Each is defined beside the code that reads and writes it."""


class Clock(FunctionElement[float]):
    """The database's own time, in seconds since 1970: that of gateways' machines may differ."""

    type = Double()
    inherit_cache = True


@compiles(Clock, "sqlite")
def _sqlite_clock(clock: Clock, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(Clock, "postgresql")
def _postgresql_clock(clock: Clock, compiler: Any, **options: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"


class Database:
    """`url` is SQLAlchemy's, without a driver: `sqlite:///file`, `postgresql://user@host/name`. `sqlite://`
    alone is in memory, and gone with this process. Nothing is opened or made until it is first used.
    `now` is the time of whatever is compared among gateways, for statements.
    """

    def __init__(self, url: str, now: Callable[[], ColumnElement[float]] = Clock) -> None:
        self.now = now
        self._url = parsed(url)
        self._engine: AsyncEngine | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end, rolled back by an error. Not to be begun within another.

        Raises `Unavailable` where the database cannot be reached, opened or written.
        """
        try:
            async with (await self._opened()).begin() as connection:
                yield connection
        except (IntegrityError, ProgrammingError):  # our own fault
            raise
        except (DBAPIError, PoolTimeout, OSError) as error:
            logger.error("the database: %s", error)
            raise Unavailable("The service's database is not available now.", 5.0) from error

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None
        self._opening = asyncio.Lock()  # whoever opens it again may do so in another event loop

    async def _opened(self) -> AsyncEngine:
        async with self._opening:
            if self._engine is None:
                engine = _engine(self._url)
                await _make_tables(engine)
                self._engine = engine
            return self._engine


def parsed(url: str) -> URL:
    """The URL with its asyncio driver. Raises ValueError for what is none, or is of a database that is not
    served; the message never quotes the URL, which may have a password in it."""
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError("database: not a URL as sqlite:///file or postgresql://user@host/name") from None
    kind = found.drivername
    if kind not in DRIVERS:
        raise ValueError(f"database: {kind!r} is not one of {', '.join(DRIVERS)}")
    if find_spec(DRIVERS[kind]) is None:
        raise ValueError(f"database: {kind} needs the package {DRIVERS[kind]}, which is not installed")
    return found.set(drivername=f"{kind}+{DRIVERS[kind]}")


def insert(connection: AsyncConnection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that knows ON CONFLICT, which every kind of database has in a dialect of its own."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


async def _make_tables(engine: AsyncEngine) -> None:
    """Those that are not there; other gateways may be doing the same."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            async with engine.begin() as connection:
                await _prepare(connection)
                await _make_missing(connection)
            return
        except OperationalError as error:
            # For the journal's mode SQLite does not wait by itself.
            if getattr(error.orig, "sqlite_errorname", "") != "SQLITE_BUSY" or time.monotonic() > until:
                raise
        await asyncio.sleep(0.02)


async def _prepare(connection: AsyncConnection) -> None:
    if connection.dialect.name == "sqlite":  # readers do not wait for a writer
        await connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    else:  # IF NOT EXISTS fails where another is just making it
        await connection.execute(select(func.pg_advisory_xact_lock(TABLES_LOCK)))


async def _make_missing(connection: AsyncConnection) -> None:
    for table in metadata.sorted_tables:
        await connection.execute(CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            await connection.execute(CreateIndex(index, if_not_exists=True))


def _engine(url: URL) -> AsyncEngine:
    # What is in statements is of clients, and their errors are logged.
    engine_of = partial(create_async_engine, url, hide_parameters=True)
    if url.get_backend_name() != "sqlite":
        return engine_of(pool_pre_ping=True)
    if url.database in (None, "", ":memory:"):
        # A connection is a database here: there is one, and transactions take turns on it.
        return engine_of(poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0)
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = engine_of(connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    event.listen(engine.sync_engine, "invalidate", _roll_back)
    return engine


def _set_up_sqlite(connection: Any, _: object) -> None:
    """What is committed survives a power cut."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _roll_back(connection: Any, *_: object) -> None:
    """Where a task was cancelled amid a transaction, as its connection is closed: SQLite would keep it locked
    for all others as long as anything refers to the statement that was cut short."""
    connection.rollback()
