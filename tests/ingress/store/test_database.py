import asyncio
from contextlib import suppress
from pathlib import Path
from random import uniform

import pytest
from sqlalchemy import Column, Integer, Table, func, insert, select
from sqlalchemy.exc import IntegrityError

from engine.protocol import Unavailable
from ingress.store.database import Database, metadata, parsed

numbers = Table("test_numbers", metadata, Column("number", Integer, primary_key=True))


async def add(database: Database, number: int) -> None:
    async with database.begin() as connection:
        await connection.execute(insert(numbers).values(number=number))


async def read(database: Database) -> set[int]:
    async with database.begin() as connection:
        return set((await connection.execute(select(numbers.c.number))).scalars())


async def test_what_is_committed_is_there_for_the_next_process(url: str) -> None:
    first = Database(url)
    await add(first, 1)
    await first.close()
    second = Database(url)
    assert await read(second) == {1}
    await second.close()


async def test_an_error_undoes_the_whole_transaction(database: Database) -> None:
    with suppress(ZeroDivisionError):
        async with database.begin() as connection:
            await connection.execute(insert(numbers).values(number=1))
            raise ZeroDivisionError
    assert await read(database) == set()


async def test_errors_tell_no_values(database: Database) -> None:
    await add(database, 271828)
    with pytest.raises(IntegrityError) as caught:
        await add(database, 271828)
    assert "parameters" in str(caught.value)
    assert "271828" not in str(caught.value)


async def test_several_gateways_make_the_tables_and_write_at_once(url: str) -> None:
    gateways = [Database(url) for _ in range(4)]
    await asyncio.gather(*(add(gateways[i % 4], i) for i in range(40)))
    assert await read(gateways[0]) == set(range(40))
    for each in gateways:
        await each.close()


async def test_transactions_in_memory_do_not_see_each_others_halves() -> None:
    database = Database("sqlite://")

    async def undone(number: int) -> None:
        with suppress(ZeroDivisionError):
            async with database.begin() as connection:
                await connection.execute(insert(numbers).values(number=number))
                await asyncio.sleep(0.01)
                raise ZeroDivisionError

    await asyncio.gather(undone(1), add(database, 2), undone(3), add(database, 4))
    assert await read(database) == {2, 4}
    await database.close()


@pytest.mark.parametrize(
    "url", ["sqlite:////dev/null/file.sqlite", "sqlite:////dev", "postgresql://user:secret@127.0.0.1:1/name"]
)
async def test_a_database_that_cannot_be_opened_is_unavailable(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Unavailable, match="database is not available") as raised:
        await read(Database(url))
    assert "the database: " in caplog.text
    assert "secret" not in caplog.text + str(raised.value)
    await asyncio.sleep(0.05)  # aiosqlite's thread tells this loop that it has ended


async def test_a_server_without_the_database_is_unavailable(postgres: str) -> None:
    with pytest.raises(Unavailable):
        await read(Database(f"{postgres}/no"))


async def test_a_connection_that_the_server_ends_is_replaced(postgres: str) -> None:
    database = Database(f"{postgres}/postgres")
    with pytest.raises(Unavailable):
        async with database.begin() as connection:
            await connection.execute(select(func.pg_terminate_backend(func.pg_backend_pid())))
    assert await read(database) == set()
    await database.close()


async def test_it_is_available_again_when_it_can_be_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("in the way")
    database = Database(f"sqlite:///{tmp_path}/folder/file.sqlite")
    with pytest.raises(Unavailable):
        await add(database, 1)
    (tmp_path / "folder").unlink()
    await add(database, 1)
    assert await read(database) == {1}
    await database.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://user:secret@host/name", "database: 'mysql' is not one of sqlite, postgresql"),
        ("postgresql+psycopg://user:secret@host", "database: 'postgresql+psycopg' is not one of"),
        ("user:secret@host", "database: not a URL as sqlite:///file or postgresql://user@host/name"),
        ("postgresql://user:se/cr:et@host:port/name", "database: not a URL"),
        ("", "database: not a URL"),
    ],
)
def test_what_is_no_database_of_ours_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(ValueError, match="database: ") as raised:
        parsed(url)
    assert str(raised.value).startswith(message)
    assert "secret" not in str(raised.value)
    assert "et@" not in str(raised.value)


async def test_who_is_cancelled_amid_a_transaction_leaves_no_lock(tmp_path: Path) -> None:
    """Whenever that is: also while the statement runs, whose answer is then fetched by nobody."""
    database = Database(f"sqlite:///{tmp_path}/file.sqlite")

    async def write(number: int) -> None:
        async with database.begin() as connection:
            await connection.execute(insert(numbers).values(number=number).returning(numbers.c.number))
            await connection.execute(select(numbers.c.number))

    await write(0)
    for number in range(1, 80):
        writing = asyncio.create_task(write(number))
        await asyncio.sleep(uniform(0, 0.004))
        writing.cancel()
        await asyncio.wait([writing])
        async with asyncio.timeout(5):
            await write(1000 + number)
    await database.close()
