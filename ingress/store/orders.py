"""Orders that outlive their gateway: queued → running → done, failed or aborted, and done → expired.

Every transition is one guarded UPDATE: of those who attempt it, exactly one succeeds. A claim is what one
gateway has on a running order, by a lease that it renews; whoever lost it can change nothing any more.
"""

import asyncio
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Double,
    Index,
    Integer,
    LargeBinary,
    Select,
    String,
    Subquery,
    Table,
    Text,
    and_,
    case,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import JSON

from engine.protocol import Overloaded
from ingress.settings import OrderSettings
from ingress.store.database import Database, insert, metadata
from ingress.store.deliveries import deliveries

Kind = Literal["txt2img", "img2img"]
State = Literal["queued", "running", "done", "failed", "aborted", "expired"]
End = Literal["done", "failed", "aborted"]

OPEN: tuple[State, ...] = ("queued", "running")
ID = re.compile(r"[0-9a-f]{32}")

_Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

orders = Table(
    "orders",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("key", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("name", String, nullable=False),
    Column("seed", String(32), nullable=False),
    Column("asked", Double, nullable=False),
    Column("options", _Json, nullable=False),
    Column("webhook", String),
    Column("state", String, nullable=False),
    Column("created", Double, nullable=False),
    Column("due", Double, nullable=False),
    Column("started", Double),
    Column("finished", Double),
    Column("expires", Double),
    Column("claim", String(32)),
    Column("lease_until", Double),
    Column("tries", Integer, nullable=False, default=0),
    Column("losses", Integer, nullable=False, default=0),
    Column("error", _Json),
    Column("answer", Text),
    Column("body", LargeBinary),  # last: what looks for orders need not read past it
    Index("orders_by_state", "state", "key"),
    Index("orders_by_key", "key", "number"),
    Index("orders_by_turn", "key", "started"),
    Index("orders_by_claim", "claim"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOrder:
    """What a caller asked for, so that it can be resolved again to the same jobs.

    `name` is what the backend knows the order by. `seed` is that of all its randomness, 32 hexadecimal
    digits. `asked` is the time by the gateway's clock, in seconds since 1970. `options` are the caller's at
    that time. `body` is JSON.
    """

    id: str
    key: str
    kind: Kind
    name: str
    seed: str
    asked: float
    options: Mapping[str, Any]
    webhook: str | None
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOrder:
    """What became of an order. Times are in seconds since 1970, by the database's clock.

    `started` is when it was last begun, `expires` when its results go. `error` is what `errors.told` says of
    an error. `answer` is JSON, without pictures, which are kept by the claim that made them.
    """

    number: int
    id: str
    key: str
    kind: Kind
    name: str
    state: State
    created: float
    started: float | None
    finished: float | None
    expires: float | None
    claim: str | None
    error: Mapping[str, Any] | None
    answer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """An order to run, and by which claim."""

    id: str
    key: str
    kind: Kind
    name: str
    seed: str
    asked: float
    options: Mapping[str, Any]
    body: bytes
    claim: str
    tries: int


class Orders:
    """`came` is set whenever an order of this process may have something to be looked at."""

    def __init__(self, database: Database, settings: OrderSettings) -> None:
        self._database = database
        self._settings = settings
        self.came = asyncio.Event()

    async def accept(self, new: NewOrder) -> None:
        """When this returns, the order is on disk, and there once if the same comes again.

        Raises `Overloaded` where too many are open; of those that come at the same moment a few more get in.
        """
        now = self._database.now()
        async with self._database.begin() as connection:
            await self._check_room(connection, new.key)
            values = {name: getattr(new, name) for name in NewOrder.__slots__}
            row = {**values, "options": dict(new.options), "state": "queued"}
            new_row = insert(connection, orders).values(**row, created=now, due=now)
            await connection.execute(new_row.on_conflict_do_nothing(index_elements=[orders.c.id]))
        self.came.set()

    async def find(self, id: str, key: str | None = None) -> StoredOrder | None:
        """The order, if it is this key's. None as key: whosever it is."""
        if not ID.fullmatch(id):
            return None
        query = self._told().where(orders.c.id == id)
        if key is not None:
            query = query.where(orders.c.key == key)
        async with self._database.begin() as connection:
            row = (await connection.execute(query)).one_or_none()
        return StoredOrder(**row._mapping) if row else None

    async def listed(
        self, key: str, *, state: str | None, limit: int, before: int | None
    ) -> list[StoredOrder]:
        """A key's orders, the newest first, from the one before that number on."""
        query = self._told().where(orders.c.key == key).order_by(orders.c.number.desc()).limit(limit)
        if state is not None:
            query = query.where(self._state() == state)
        if before is not None:
            query = query.where(orders.c.number < before)
        async with self._database.begin() as connection:
            return [StoredOrder(**row._mapping) for row in await connection.execute(query)]

    async def place(self, id: str) -> int | None:
        """How soon it is the order's turn: 1 is next. None if it does not wait."""
        queue = _queue(orders.c.state == "queued")
        place = func.row_number().over(order_by=_turns(queue)).label("place")
        places = select(queue.c.id, place).subquery()
        async with self._database.begin() as connection:
            found = await connection.execute(select(places.c.place).where(places.c.id == id))
            return found.scalar_one_or_none()

    async def claim(self) -> Claimed | None:
        """The order whose turn it is: keys take turns, each key's orders are in the order they came in.

        None if there is none, or another gateway was faster.
        """
        now, token = self._database.now(), uuid.uuid4().hex
        queue = _queue(and_(orders.c.state == "queued", orders.c.due <= now))
        claimed = [orders.c[name] for name in Claimed.__slots__]
        async with self._database.begin() as connection:
            first = await connection.scalar(select(queue.c.id).order_by(*_turns(queue)).limit(1))
            if first is None:
                return None
            row = await connection.execute(
                update(orders)
                .where(orders.c.id == first, orders.c.state == "queued")
                .values(
                    state="running",
                    claim=token,
                    started=now,
                    lease_until=now + self._settings.lease_seconds,
                    tries=orders.c.tries + 1,
                )
                .returning(*claimed)
            )
            found = row.one_or_none()
        return Claimed(**found._mapping) if found else None

    async def renew(self, claims: Sequence[str]) -> set[str]:
        """Keep the leases on these; those that are still held."""
        until = self._database.now() + self._settings.lease_seconds
        async with self._database.begin() as connection:
            held = await connection.execute(
                update(orders).where(_held(*claims)).values(lease_until=until).returning(orders.c.claim)
            )
            return set(held.scalars())

    async def release(self, claims: Sequence[str]) -> None:
        """Back to the queue, for the next who has time."""
        async with self._database.begin() as connection:
            await connection.execute(update(orders).where(_held(*claims)).values(**_QUEUED))

    async def postpone(self, claim: str, seconds: float) -> bool:
        """Back to the queue, not to be tried before so many seconds; False if it is too old for that."""
        due = self._database.now() + seconds
        last = orders.c.created + self._settings.retry_seconds
        async with self._database.begin() as connection:
            changed = await connection.execute(
                update(orders).where(_held(claim), last >= due).values(**_QUEUED, due=due)
            )
            return changed.rowcount == 1

    async def finish(
        self, claim: str, state: End, *, answer: str | None = None, error: Mapping[str, Any] | None = None
    ) -> bool:
        """The end of a running order; False if the claim was lost, and nothing has changed."""
        values = {"state": state, "answer": answer, "error": error}
        async with self._database.begin() as connection:
            return await self._end(connection, _held(claim), values)

    async def abort(self, id: str, key: str) -> None:
        """End an order that is open. Whoever runs it sees that its claim is lost."""
        is_open = and_(orders.c.id == id, orders.c.key == key, orders.c.state.in_(OPEN))
        async with self._database.begin() as connection:
            await self._end(connection, is_open, {"state": "aborted"})
        self.came.set()

    async def take_back(self, error: Mapping[str, Any]) -> None:
        """Queue again what was lost with its gateway; end with this error what was lost once too often."""
        lost = and_(orders.c.state == "running", orders.c.lease_until < self._database.now())
        async with self._database.begin() as connection:
            found = await connection.execute(select(orders.c.claim, orders.c.losses).where(lost))
            for claim, losses in found.all():
                this = and_(orders.c.claim == claim, lost)
                if losses + 1 >= self._settings.max_losses:
                    await self._end(connection, this, {"state": "failed", "error": error})
                else:
                    values = {**_QUEUED, "losses": losses + 1}
                    await connection.execute(update(orders).where(this).values(**values))

    async def expire(self, id: str, key: str) -> None:
        """Let an order's results go now, if it has any."""
        done = and_(orders.c.id == id, orders.c.key == key, orders.c.state == "done")
        async with self._database.begin() as connection:
            values = {**_EXPIRED, "expires": self._database.now()}
            await connection.execute(update(orders).where(done).values(**values))

    async def expire_due(self) -> list[str]:
        """Let all results go whose time has come. The claims that made them."""
        due = and_(orders.c.state == "done", orders.c.expires <= self._database.now())
        async with self._database.begin() as connection:
            if await connection.scalar(select(orders.c.id).where(due).limit(1)) is None:
                return []
            gone = await connection.execute(
                update(orders).where(due).values(**_EXPIRED).returning(orders.c.claim)
            )
            return list(gone.scalars())

    async def forget(self) -> None:
        """Delete orders that ended long ago, unless somebody is still to be told."""
        last = self._database.now() - self._settings.keep_seconds
        old = and_(
            orders.c.state.not_in(OPEN),
            orders.c.expires <= last,
            orders.c.id.not_in(select(deliveries.c.order)),
        )
        async with self._database.begin() as connection:
            if await connection.scalar(select(orders.c.id).where(old).limit(1)) is not None:
                await connection.execute(delete(orders).where(old))

    async def with_results(self, claims: Sequence[str]) -> set[str]:
        """Of these claims, those that have results or may yet have."""
        query = select(orders.c.claim).where(
            orders.c.claim.in_(claims), orders.c.state.in_(("running", "done"))
        )
        async with self._database.begin() as connection:
            return set(await connection.scalars(query))

    async def _check_room(self, connection: AsyncConnection, key: str) -> None:
        own = func.count().filter(orders.c.key == key)
        counted = await connection.execute(select(func.count(), own).where(orders.c.state.in_(OPEN)))
        total, mine = counted.one()
        if mine >= self._settings.max_open_per_key:
            raise Overloaded(f"{mine} of your jobs are waiting or running, and more are not taken.", 10.0)
        if total >= self._settings.max_open:
            raise Overloaded("Too many jobs are waiting.", 10.0)

    async def _end(
        self, connection: AsyncConnection, which: ColumnElement[bool], values: Mapping[str, Any]
    ) -> bool:
        """One order's last transition, and with it what is to be told of it."""
        now = self._database.now()
        ended = await connection.execute(
            update(orders)
            .where(which)
            .values(**values, finished=now, expires=now + self._settings.keep_seconds, body=None)
            .returning(orders.c.id, orders.c.webhook)
        )
        row = ended.one_or_none()
        if row is not None and row.webhook is not None:
            new = {"id": uuid.uuid4().hex, "order": row.id, "url": row.webhook}
            await connection.execute(insert(connection, deliveries).values(**new, created=now, due=now))
        return row is not None

    def _state(self) -> ColumnElement[str]:
        """Results whose time has come have expired, whether or not they are already deleted."""
        gone = and_(orders.c.state == "done", orders.c.expires <= self._database.now())
        return case((gone, "expired"), else_=orders.c.state)

    def _told(self) -> Select[Any]:
        columns = [orders.c[name] for name in StoredOrder.__slots__ if name != "state"]
        return select(self._state().label("state"), *columns)


_QUEUED: Mapping[str, Any] = {"state": "queued", "lease_until": None}
_EXPIRED: Mapping[str, Any] = {"state": "expired", "answer": None}


def _held(*claims: str) -> ColumnElement[bool]:
    return and_(orders.c.claim.in_(claims), orders.c.state == "running")


def _queue(which: ColumnElement[bool]) -> Subquery:
    """These orders, each with its number among its key's and with when the key last had its turn."""
    others = orders.alias()
    served = select(func.max(others.c.started)).where(others.c.key == orders.c.key).scalar_subquery()
    turn = func.row_number().over(partition_by=orders.c.key, order_by=orders.c.number)
    return (
        select(
            orders.c.id,
            orders.c.number,
            turn.label("turn"),
            func.coalesce(served, 0.0).label("served"),
        )
        .where(which)
        .subquery()
    )


def _turns(queue: Subquery) -> list[ColumnElement[Any]]:
    return [queue.c.turn, queue.c.served, queue.c.number]
