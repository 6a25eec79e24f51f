"""Every kind of database that is served: SQLite in a file, and a PostgreSQL server started for the tests."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
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


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server, without a database."""
    if PG_CTL is None:
        pytest.skip("no PostgreSQL: apt install postgresql")
    program: str = PG_CTL
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name  # it refuses to be root
    folder = Path(tempfile.mkdtemp())
    shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def pg_ctl(*arguments: str) -> None:
        command = [program, "--pgdata", f"{folder}/data", "--silent", *arguments]
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    pg_ctl("init", "-o", "--username=atelier --auth=trust --no-sync")
    pg_ctl("start", "--log", f"{folder}/log", "-o", f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off")
    yield f"postgresql://atelier@127.0.0.1:{port}"
    pg_ctl("stop", "--mode=immediate")
    shutil.rmtree(folder)


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
