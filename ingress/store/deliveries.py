"""What is to be told of orders that have ended: each until it is told, or not to be any more."""

from dataclasses import dataclass

from sqlalchemy import Column, Double, Index, Integer, String, Table, delete, select, update

from ingress.store.database import Database, metadata

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("order", String(32), nullable=False),
    Column("url", String, nullable=False),
    Column("created", Double, nullable=False),
    Column("due", Double, nullable=False),
    Column("tries", Integer, nullable=False, default=0),
    Index("deliveries_by_due", "due"),
    Index("deliveries_by_order", "order"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One thing to tell. `id` is the same at every try, of which this is number `tries`. `age` in seconds."""

    id: str
    order: str
    url: str
    tries: int
    age: float


class Deliveries:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, seconds: float) -> Delivery | None:
        """The delivery that has been due for longest. It is due again after so many seconds, in case that
        nothing more is heard of it. None if there is none, or another gateway was faster."""
        now = self._database.now()
        first = select(deliveries.c.id).where(deliveries.c.due <= now).order_by(deliveries.c.due).limit(1)
        age = (now - deliveries.c.created).label("age")
        columns = [deliveries.c[name] for name in Delivery.__slots__ if name != "age"]
        async with self._database.begin() as connection:
            id = await connection.scalar(first)
            if id is None:
                return None
            row = await connection.execute(
                update(deliveries)
                .where(deliveries.c.id == id, deliveries.c.due <= now)
                .values(due=now + seconds, tries=deliveries.c.tries + 1)
                .returning(*columns, age)
            )
            found = row.one_or_none()
        return Delivery(**found._mapping) if found else None

    async def postpone(self, id: str, seconds: float) -> None:
        due = self._database.now() + seconds
        async with self._database.begin() as connection:
            await connection.execute(update(deliveries).where(deliveries.c.id == id).values(due=due))

    async def end(self, id: str) -> None:
        """It is told, or given up."""
        async with self._database.begin() as connection:
            await connection.execute(delete(deliveries).where(deliveries.c.id == id))
