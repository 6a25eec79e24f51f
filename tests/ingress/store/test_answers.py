import asyncio

import pytest
from sqlalchemy import func, select

from ingress.store.answers import (
    LEASE_SECONDS,
    ROW_BYTES,
    Answer,
    Answers,
    Claim,
    Name,
    OtherRequest,
    answers,
)
from ingress.store.database import Database

NAME = Name("mia", "one")
SAME, OTHER = bytes(32), bytes(31) + b"x"
ANSWER = Answer(200, (("content-type", "application/json"), ("x-warnings", "é")), b'{"a": 1}\xff\x00')


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.5

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def here(database: Database, clock: Clock) -> Answers:
    return Answers(database, 3600, 2**20, clock)


@pytest.fixture
def there(other_gateway: Database, clock: Clock) -> Answers:
    """Another gateway."""
    return Answers(other_gateway, 3600, 2**20, clock)


async def rows(database: Database) -> int:
    async with database.begin() as connection:
        return (await connection.execute(select(func.count()).select_from(answers))).scalar_one()


async def test_of_many_at_once_one_gets_the_claim(here: Answers, there: Answers) -> None:
    found = await asyncio.gather(*(each.claim(NAME, SAME) for each in [here, there] * 10))
    claims = [each for each in found if each is not None]
    assert len(claims) == 1
    assert isinstance(claims[0], Claim)
    assert claims[0].started == 1_000_000.5


async def test_randomness_is_of_128_bits_and_another_for_each_name(here: Answers) -> None:
    claims = [await here.claim(Name("mia", str(number)), SAME) for number in range(20)]
    seeds = {each.random_seed for each in claims if isinstance(each, Claim)}
    assert len(seeds) == 20
    assert 2**100 < max(seeds) < 2**128


async def test_a_repeat_gets_the_answer_byte_for_byte(here: Answers, there: Answers) -> None:
    await here.claim(NAME, SAME)
    assert await there.claim(NAME, SAME) is None
    await here.finish(NAME, ANSWER)
    assert await there.claim(NAME, SAME) == ANSWER
    assert await here.claim(NAME, SAME) == ANSWER


async def test_another_request_with_the_name_is_told_so(here: Answers, there: Answers) -> None:
    await here.claim(NAME, SAME)
    with pytest.raises(OtherRequest):
        await there.claim(NAME, OTHER)
    await here.finish(NAME, ANSWER)
    with pytest.raises(OtherRequest):
        await there.claim(NAME, OTHER)


async def test_each_key_has_its_own_names(here: Answers) -> None:
    await here.claim(NAME, SAME)
    assert isinstance(await here.claim(Name("tom", "one"), OTHER), Claim)


async def test_what_is_forgotten_never_came(here: Answers, there: Answers) -> None:
    first = await here.claim(NAME, SAME)
    await here.forget(NAME)
    second = await there.claim(NAME, OTHER)
    assert isinstance(first, Claim)
    assert isinstance(second, Claim)
    assert first.random_seed != second.random_seed


async def test_a_dead_gateways_claim_is_taken_over_with_its_randomness(
    here: Answers, there: Answers, clock: Clock
) -> None:
    claim = await here.claim(NAME, SAME)
    clock.now += LEASE_SECONDS - 1
    await here.renew()
    clock.now += LEASE_SECONDS - 1
    assert await there.claim(NAME, SAME) is None
    clock.now += 1
    with pytest.raises(OtherRequest):
        await there.claim(NAME, OTHER)
    found = await asyncio.gather(*(there.claim(NAME, SAME) for _ in range(5)))
    assert [each for each in found if each] == [claim]


async def test_one_that_was_only_slow_leaves_the_claim_to_the_other(
    here: Answers, there: Answers, clock: Clock
) -> None:
    await here.claim(NAME, SAME)
    clock.now += LEASE_SECONDS
    await there.claim(NAME, SAME)
    await here.renew()
    await here.forget(NAME)
    await here.finish(NAME, Answer(200, (), b"late"))
    assert await here.claim(NAME, SAME) is None
    await there.finish(NAME, ANSWER)
    assert await here.claim(NAME, SAME) == ANSWER


async def test_a_claim_that_is_handed_over_is_taken_at_once(here: Answers, there: Answers) -> None:
    claim = await here.claim(NAME, SAME)
    await here.hand_over(NAME)
    assert await there.claim(NAME, SAME) == claim


async def test_answers_go_when_their_time_is_over_and_claims_that_live_do_not(
    here: Answers, database: Database, clock: Clock
) -> None:
    await here.claim(NAME, SAME)
    await here.finish(NAME, ANSWER)
    clock.now += 3599
    await here.tidy()
    assert await rows(database) == 1
    await here.claim(Name("mia", "abandoned"), SAME)
    await here.hand_over(Name("mia", "abandoned"))
    clock.now += 1
    await here.tidy()
    assert isinstance(await here.claim(NAME, OTHER), Claim)
    clock.now += 4000
    await here.renew()
    await here.tidy()
    assert await rows(database) == 1


async def test_the_oldest_answers_go_when_all_are_too_large(database: Database, clock: Clock) -> None:
    """Those that are still being made stay."""
    small = Answers(database, 3600, 10 * ROW_BYTES, clock)
    await small.claim(Name("mia", "running"), SAME)
    for number in range(6):
        clock.now += 1
        await small.claim(Name("mia", str(number)), SAME)
        await small.finish(Name("mia", str(number)), Answer(200, (), bytes(2 * ROW_BYTES)))
    await small.tidy()
    async with database.begin() as connection:
        names = (await connection.execute(select(answers.c.name).order_by(answers.c.expires))).scalars().all()
    assert names == ["running", "3", "4", "5"]


async def test_an_answer_that_is_larger_than_all_may_be_is_not_kept(database: Database, clock: Clock) -> None:
    small = Answers(database, 3600, 10 * ROW_BYTES, clock)
    await small.claim(NAME, SAME)
    await small.finish(NAME, Answer(200, (), bytes(9 * ROW_BYTES + 1)))
    assert await rows(database) == 0
