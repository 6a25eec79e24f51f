import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, Table, insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError

from ingress.store.database import Database, metadata, with_driver

numbers = Table("test_numbers", metadata, Column("number", Integer, primary_key=True))


async def add(database: Database, number: int) -> None:
    async with database.begin() as connection:
        await connection.execute(insert(numbers).values(number=number))


async def read(database: Database) -> set[int]:
    async with database.begin() as connection:
        return set((await connection.execute(select(numbers.c.number))).scalars())


async def test_what_is_committed_is_there_for_the_next_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/deeper/file.sqlite"
    first = Database(url)
    await add(first, 1)
    await first.close()
    second = Database(url)
    assert await read(second) == {1}
    await second.close()


async def test_an_error_undoes_the_whole_transaction() -> None:
    database = Database("sqlite://")
    with suppress(ZeroDivisionError):
        async with database.begin() as connection:
            await connection.execute(insert(numbers).values(number=1))
            raise ZeroDivisionError
    assert await read(database) == set()
    await database.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///{folder}/file.sqlite"])
async def test_errors_tell_no_values(tmp_path: Path, url: str) -> None:
    database = Database(url.format(folder=tmp_path))
    await add(database, 271828)
    with pytest.raises(IntegrityError) as caught:
        await add(database, 271828)
    assert "271828" not in str(caught.value)
    await database.close()


async def test_several_gateways_write_to_one_file_at_once(tmp_path: Path) -> None:
    gateways = [Database(f"sqlite:///{tmp_path}/file.sqlite") for _ in range(4)]
    await asyncio.gather(*(add(gateways[i % 4], i) for i in range(40)))
    assert await read(gateways[0]) == set(range(40))
    for each in gateways:
        await each.close()


def test_a_database_of_another_kind_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="database: 'mysql' is not one of sqlite, postgresql"):
        with_driver(make_url("mysql://host/name"))
