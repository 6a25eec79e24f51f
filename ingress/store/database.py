"""Where the service remembers what must outlast it: one SQL database, shared by all gateways."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateIndex, CreateTable

BUSY_SECONDS = 10
"""How long a statement waits for another process that writes to the same SQLite file."""

metadata = MetaData()
"""The tables. Each is defined beside the code that reads and writes it."""


class Database:
    """`url` is SQLAlchemy's, without a driver: `sqlite:///file`, `postgresql://user@host/name`. `sqlite://`
    alone is in memory, and gone with this process. Nothing is opened or made until it is first used.
    """

    def __init__(self, url: str) -> None:
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
        return create_async_engine(url, hide_parameters=True, poolclass=StaticPool)
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _: object) -> None:
    """Readers do not wait for a writer, and what is committed survives a power cut."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
