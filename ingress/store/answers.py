"""What POSTs with an Idempotency-Key were answered, so that their repeats are answered the same.

Times are seconds since the epoch, by the gateways' own clocks. If those differ by more than a lease leaves,
two gateways answer one request; both with the same randomness, so the same.
"""

import asyncio
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Delete,
    Double,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Update,
    and_,
    delete,
    func,
    or_,
    select,
    tuple_,
    update,
)

from ingress.background import repeat
from ingress.store.database import Database, insert, metadata

LEASE_SECONDS = 15.0
"""How long nobody else begins a request that a gateway has begun, after it was last heard of."""
HEARTBEAT_SECONDS = 3.0
TIDYING_SECONDS = 12.0
ROW_BYTES = 1024
"""What an answer is taken to need beside its body."""

answers = Table(
    "answers",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("digest", LargeBinary(32), nullable=False),
    Column("random_seed", LargeBinary(16), nullable=False),
    Column("started", Double, nullable=False),
    Column("owner", String(32)),
    Column("lease", Double),
    Column("expires", Double, nullable=False),
    Column("size", Integer, nullable=False),
    Column("status", Integer),
    Column("headers", JSON),
    Column("body", LargeBinary),
    Index("answers_expires", "expires", "size"),
)
"""`key` is the API key's id, `name` the client's Idempotency-Key. While a request is answered `owner` is the
gateway that does, until `lease`; then `owner` is null, and the last three columns are the answer."""


class Name(NamedTuple):
    """What a request is known by: the id of its API key, and its Idempotency-Key."""

    key: str
    name: str


@dataclass(frozen=True, slots=True)
class Claim:
    """This gateway is to answer the request, with this randomness and as if at that time."""

    random_seed: int
    started: float


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class OtherRequest(Exception):
    """The name is another request's."""


class Answers:
    """`seconds` is how long an answer is kept, `max_bytes` what all of them may need together."""

    def __init__(
        self, database: Database, seconds: float, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._owner = uuid.uuid4().hex
        self._held: set[Name] = set()

    async def claim(self, name: Name, digest: bytes) -> Claim | Answer | None:
        """The claim to answer this request, or its answer; None while somebody else is at it.

        A claim of a gateway that was not heard of for a lease is taken over. Raises `OtherRequest`.
        """
        now = self._clock()
        async with self._database.begin() as connection:
            row = (await connection.execute(select(answers).where(_is(name)))).first()
            if row and row.digest != digest:
                raise OtherRequest
            if row and row.owner is None:
                return Answer(row.status, tuple((name, value) for name, value in row.headers), row.body)
            if row and row.lease > now:
                return None
            new = insert(connection, answers).values(
                key=name.key,
                name=name.name,
                digest=digest,
                random_seed=secrets.token_bytes(16),
                started=now,
                owner=self._owner,
                lease=now + LEASE_SECONDS,
                expires=now + self._seconds,
                size=0,
            )
            # One statement: of several gateways that see no claim, or one that has run out, one gets it.
            claiming = new.on_conflict_do_update(
                index_elements=[answers.c.key, answers.c.name],
                set_={"owner": new.excluded.owner, "lease": new.excluded.lease},
                where=and_(answers.c.digest == digest, answers.c.lease <= now),
            ).returning(answers.c.random_seed, answers.c.started)
            claimed = (await connection.execute(claiming)).first()
        if claimed is None:
            return None
        self._held.add(name)
        return Claim(int.from_bytes(claimed.random_seed), claimed.started)

    async def finish(self, name: Name, answer: Answer) -> None:
        """Keep the answer, unless another gateway has taken the claim over, or it is larger than all answers
        may be together."""
        size = len(answer.body) + ROW_BYTES
        if size > self._max_bytes:
            await self.forget(name)
            return
        await self._give_up(
            name,
            update(answers).values(
                owner=None,
                lease=None,
                expires=self._clock() + self._seconds,
                size=size,
                status=answer.status,
                headers=answer.headers,
                body=answer.body,
            ),
        )

    async def forget(self, name: Name) -> None:
        """Give the claim up, as if the request had never come."""
        await self._give_up(name, delete(answers))

    async def hand_over(self, name: Name) -> None:
        """Give the claim up to whoever gets the request next, who answers it with the same randomness."""
        await self._give_up(name, update(answers).values(lease=0.0))

    async def _give_up(self, name: Name, change: Update | Delete) -> None:
        self._held.discard(name)
        async with self._database.begin() as connection:
            await connection.execute(change.where(_is(name), answers.c.owner == self._owner))

    async def renew(self) -> None:
        """Be heard of, for all claims of this gateway."""
        if self._held:
            async with self._database.begin() as connection:
                names = tuple_(answers.c.key, answers.c.name).in_(self._held)
                renewal = update(answers).values(lease=self._clock() + LEASE_SECONDS)
                await connection.execute(renewal.where(names, answers.c.owner == self._owner))

    async def tidy(self) -> None:
        """Delete answers that are kept no longer, and the oldest of those that are too much together."""
        now = self._clock()
        total = func.sum(answers.c.size).over(order_by=answers.c.expires.desc())
        newest = select(answers.c.expires, total.label("total")).subquery()
        last = select(func.max(newest.c.expires)).where(newest.c.total > self._max_bytes).scalar_subquery()
        async with self._database.begin() as connection:
            await connection.execute(
                delete(answers).where(answers.c.expires <= now, or_(_ANSWERED, answers.c.lease <= now))
            )
            await connection.execute(delete(answers).where(answers.c.expires <= last, _ANSWERED))

    async def tend(self) -> None:
        """Keep claims and answers in order, until cancelled. An error of one round is logged."""
        async with asyncio.TaskGroup() as group:
            group.create_task(repeat("renewing claims", self.renew, HEARTBEAT_SECONDS))
            group.create_task(repeat("deleting old answers", self.tidy, TIDYING_SECONDS))


_ANSWERED = answers.c.owner.is_(None)


def _is(name: Name) -> ColumnElement[bool]:
    return and_(answers.c.key == name.key, answers.c.name == name.name)
