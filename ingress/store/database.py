"""Where the service remembers what must outlast it: one SQL database, shared by all gateways."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Double, MetaData, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql.functions import FunctionElement

BUSY_SECONDS = 10
"""How long a statement waits for another process that writes to the same SQLite file."""

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
        self._url = with_driver(make_url(url))
        self._engine: AsyncEngine | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end, rolled back by an error."""
        async with (await self._opened()).begin() as connection:
            yield connection

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    async def _opened(self) -> AsyncEngine:
        async with self._opening:
            if self._engine is None:
                engine = _engine(self._url)
                async with engine.begin() as connection:
                    await _make_tables(connection)
                self._engine = engine
            return self._engine


def with_driver(url: URL) -> URL:
    """With the asyncio driver of its kind. Raises ValueError for databases that are not served."""
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
    if url.drivername not in drivers:
        raise ValueError(f"database: {url.drivername!r} is not one of {', '.join(drivers)}")
    return url.set(drivername=drivers[url.drivername])


async def _make_tables(connection: AsyncConnection) -> None:
    """Those that are not there; other gateways may be doing the same."""
    for table in metadata.sorted_tables:
        await connection.execute(CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            await connection.execute(CreateIndex(index, if_not_exists=True))


def _engine(url: URL) -> AsyncEngine:
    """Its errors, which are logged, tell no values: those are what clients have sent."""
    if url.get_backend_name() != "sqlite":
        return create_async_engine(url, hide_parameters=True, pool_pre_ping=True)
    if not url.database:
        # One connection is the whole database, and one transaction at a time is all it can have.
        one = {"poolclass": AsyncAdaptedQueuePool, "pool_size": 1, "max_overflow": 0}
        return create_async_engine(url, hide_parameters=True, **one)
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    event.listen(engine.sync_engine, "invalidate", _roll_back)
    return engine


def _set_up_sqlite(connection: Any, _: object) -> None:
    """Readers do not wait for a writer, and what is committed survives a power cut."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _roll_back(connection: Any, *_: object) -> None:
    """Where a task was cancelled amid a transaction, as its connection is closed: SQLite would keep it locked
    for all others as long as anything refers to the statement that was cut short."""
    connection.rollback()
