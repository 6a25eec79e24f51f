import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.ingress.fakes import Time

NOBODY = "nobody"
"""Whom PostgreSQL runs as where the tests are root's, as it refuses that."""


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Path]:
    """The folder of the socket of a server of our own, without a port."""
    if shutil.which("initdb") is None or find_spec("asyncpg") is None:
        pytest.skip("needs PostgreSQL's programs and asyncpg")
    user = NOBODY if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp())
    if user:
        shutil.chown(folder, user)
    data = folder / "data"
    options = f"-k {folder} -c listen_addresses= -c fsync=off"

    def run(*command: object) -> None:
        subprocess.run([*map(str, command)], user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    run("initdb", "-D", data, "-U", "tests", "--auth=trust", "--no-sync")
    run("pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", options, "start")
    try:
        yield folder
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, of each kind that is served."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/file.sqlite"
    folder, name = request.getfixturevalue("postgresql"), f"test_{uuid.uuid4().hex}"
    create = ["psql", "-h", str(folder), "-U", "tests", "-d", "postgres", "-c", f"CREATE DATABASE {name}"]
    subprocess.run(create, check=True, stdout=subprocess.DEVNULL)
    return f"postgresql://tests@/{name}?host={folder}"
