"""What callers have set by `POST /options`: of each API key its own few options, seen by every gateway."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Column, String, Table, Text, delete, select

from ingress.store.database import Database, insert, metadata

options = Table(
    "options",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("option", String(128), primary_key=True),
    Column("value", Text, nullable=False),
)
"""`value` is JSON."""


async def read(database: Database, key: str) -> dict[str, Any]:
    """What the caller with that key has set, by option. One query."""
    async with database.begin() as connection:
        rows = await connection.execute(select(options.c.option, options.c.value).where(options.c.key == key))
        return {option: json.loads(value) for option, value in rows}


async def save(database: Database, key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Write what differs: options that a second gateway sets at the same moment stay as it sets them."""
    gone = [option for option in before if option not in after]
    values = [
        {"key": key, "option": option, "value": json.dumps(value)}
        for option, value in sorted(after.items())
        if option not in before or before[option] != value
    ]
    if not gone and not values:
        return
    async with database.begin() as connection:
        if gone:
            await connection.execute(delete(options).where(options.c.key == key, options.c.option.in_(gone)))
        if values:
            new = insert(connection, options)
            setting = new.on_conflict_do_update(
                index_elements=[options.c.key, options.c.option], set_={"value": new.excluded.value}
            )
            await connection.execute(setting, values)
