"""Every kind of database that is served: SQLite in a file, and a PostgreSQL server started for the tests."""

import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from ingress.store.database import Database
from tests.ingress.fakes import Time

PG_CTL = shutil.which("pg_ctl") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")), None)


@pytest.fixture
def time() -> Time:
    return Time()


SERVER = """
folder=$(mktemp -d)
cd "$folder"
"$0" init --pgdata data --silent -o "--username=atelier --auth=trust --no-sync" > log
"$0" start --pgdata data --silent --log log -o "-h 127.0.0.1 -p $1 -k $folder -c fsync=off"
echo ready
cat
"$0" stop --pgdata data --silent --mode=immediate
cd /
rm -r "$folder"
"""
"""Starts PostgreSQL, and stops it when the standard input ends: also where the tests are killed."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server, without a database."""
    if PG_CTL is None:
        pytest.skip("no PostgreSQL: apt install postgresql")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        ["sh", "-ec", SERVER, PG_CTL, str(port)],
        user="postgres" if os.getuid() == 0 else None,  # it refuses to be root
        cwd="/",
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout
        assert server.stdout.readline() == "ready\n"
        yield f"postgresql://atelier@127.0.0.1:{port}"


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/deeper/file.sqlite"
    server: str = request.getfixturevalue("postgres")
    name = f"test_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(f"{server}/postgres")
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return f"{server}/{name}"


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    yield database
    await database.close()


@pytest.fixture
async def other_gateway(url: str) -> AsyncIterator[Database]:
    """The same database, as another process has it."""
    database = Database(url)
    yield database
    await database.close()
