import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from engine.protocol import Overloaded
from ingress.settings import OrderSettings
from ingress.store.database import Database
from ingress.store.deliveries import Deliveries
from ingress.store.orders import Claimed, NewOrder, Orders
from tests.ingress.fakes import Time

SETTINGS = OrderSettings(lease_seconds=10, retry_seconds=100, keep_seconds=1000, max_losses=3)

Gateway = Callable[..., Orders]


def new(number: int, key: str = "a", webhook: str | None = None) -> NewOrder:
    return NewOrder(
        id=f"{number:032x}",
        key=key,
        kind="txt2img",
        name=f"name {number}",
        seed=f"{number:032x}",
        asked=5.25,
        options={"samples_format": "png"},
        webhook=webhook,
        body=b'{"prompt": "x"}',
    )


@pytest.fixture
async def gateway(url: str, time: Time) -> AsyncIterator[Gateway]:
    """Makes another gateway's view of the one database."""
    async with AsyncExitStack() as stack:

        def make(**changes: int) -> Orders:
            database = Database(url, time.now)
            stack.push_async_callback(database.close)
            return Orders(database, SETTINGS.model_copy(update=changes))

        yield make


@pytest.fixture
async def orders(gateway: Gateway) -> Orders:
    return gateway()


async def claimed(orders: Orders) -> Claimed:
    found = await orders.claim()
    assert found is not None
    return found


async def state(orders: Orders, number: int) -> str | None:
    found = await orders.find(f"{number:032x}")
    return found.state if found else None


async def test_what_was_accepted_is_there_for_another_gateway(gateway: Gateway, time: Time) -> None:
    await gateway().accept(new(1))
    other = gateway()
    found = await other.find(new(1).id, "a")
    assert found is not None
    assert (found.state, found.created, found.name) == ("queued", time.seconds, "name 1")
    order = await claimed(other)
    assert {name: getattr(order, name) for name in ("id", "key", "kind", "seed", "asked", "body")} == {
        name: getattr(new(1), name) for name in ("id", "key", "kind", "seed", "asked", "body")
    }
    assert order.options == {"samples_format": "png"}
    assert await gateway().claim() is None


async def test_an_order_that_is_accepted_again_is_there_once(orders: Orders) -> None:
    """A gateway that dies between accepting it and the answer leaves its request to another one."""
    for _ in range(2):
        await orders.accept(new(1))
    await claimed(orders)
    assert await orders.claim() is None
    await orders.accept(new(1))
    assert await state(orders, 1) == "running"


async def test_an_order_is_known_to_its_key_alone(orders: Orders) -> None:
    await orders.accept(new(1, "a"))
    assert await orders.find(new(1).id, "b") is None
    assert await orders.listed("b", state=None, limit=9, before=None) == []
    await orders.abort(new(1).id, "b")
    assert await state(orders, 1) == "queued"


@pytest.mark.parametrize("id", ["", "x", "../" * 9, "0" * 31, "\0" * 32, "A" * 32])
async def test_what_is_no_id_is_not_there(orders: Orders, id: str) -> None:
    assert await orders.find(id) is None


async def test_keys_take_turns_and_each_keys_orders_keep_their_order(orders: Orders, time: Time) -> None:
    for number, key in enumerate("aaaaabbc"):
        await orders.accept(new(number, key))
    ids = [f"{number:032x}" for number in range(8)]
    assert [await orders.place(id) for id in ids] == [1, 4, 6, 7, 8, 2, 5, 3]
    begun = []
    for _ in range(8):
        time.seconds += 1
        order = await claimed(orders)
        await orders.finish(order.claim, "done", answer="{}")
        begun.append(int(order.id, 16))
    assert begun == [0, 5, 7, 1, 6, 2, 3, 4]
    assert await orders.place(ids[0]) is None


async def test_a_key_that_had_its_turn_waits_for_one_that_comes_later(orders: Orders, time: Time) -> None:
    for number in range(3):
        await orders.accept(new(number, "a"))
    await claimed(orders)
    time.seconds += 1
    await orders.accept(new(9, "b"))
    assert await orders.place(new(9).id) == 1
    assert (await claimed(orders)).key == "b"


async def test_an_order_is_claimed_once_however_many_gateways_there_are(gateway: Gateway) -> None:
    gateways = [gateway() for _ in range(4)]
    for number in range(12):
        await gateways[0].accept(new(number))

    async def claim_all(one: Orders) -> list[str]:
        found = []
        while await state(one, 11) == "queued":
            if order := await one.claim():
                found.append(order.id)
        return found

    found = await asyncio.gather(*map(claim_all, gateways))
    assert sorted(id for each in found for id in each) == [f"{number:032x}" for number in range(12)]


async def test_a_lease_that_is_renewed_is_kept(gateway: Gateway, time: Time) -> None:
    one, other = gateway(), gateway()
    await one.accept(new(1))
    order = await claimed(one)
    for _ in range(5):
        time.seconds += 8
        assert await one.renew([order.claim]) == {order.claim}
        await other.take_back({})
    assert await other.claim() is None
    assert await one.finish(order.claim, "done", answer="{}")


async def test_an_order_goes_on_elsewhere_when_the_lease_has_ended(gateway: Gateway, time: Time) -> None:
    one, other = gateway(), gateway()
    await one.accept(new(1))
    lost = await claimed(one)
    time.seconds += 11
    await other.take_back({})
    taken = await claimed(other)
    assert (taken.id, taken.seed, taken.tries) == (lost.id, lost.seed, 2)
    assert await one.renew([lost.claim]) == set()
    await one.release([lost.claim])
    assert not await one.postpone(lost.claim, 0)
    assert not await one.finish(lost.claim, "failed", error={"error": "too late"})
    assert await other.finish(taken.claim, "done", answer='{"images": 1}')
    found = await one.find(new(1).id)
    assert found is not None
    assert (found.state, found.claim, found.answer, found.error) == (
        "done", taken.claim, '{"images": 1}', None
    )  # fmt: skip


async def test_an_order_that_gateways_die_of_is_given_up(orders: Orders, time: Time) -> None:
    await orders.accept(new(1, webhook="https://example.com/"))
    for _ in range(3):
        assert await state(orders, 1) == "queued"
        await claimed(orders)
        time.seconds += 11
        await orders.take_back({"detail": "lost"})
    found = await orders.find(new(1).id)
    assert found is not None
    assert (found.state, found.error, found.finished) == ("failed", {"detail": "lost"}, time.seconds)


async def test_of_finishing_and_aborting_one_succeeds(gateway: Gateway) -> None:
    one, other = gateway(), gateway()
    for number in range(8):
        await one.accept(new(number))
        order = await claimed(one)
        finished, _ = await asyncio.gather(
            one.finish(order.claim, "done", answer="{}"), other.abort(order.id, "a")
        )
        assert await state(one, number) == ("done" if finished else "aborted")


async def test_an_aborted_order_is_never_begun(orders: Orders) -> None:
    await orders.accept(new(1))
    await orders.abort(new(1).id, "a")
    await orders.abort(new(1).id, "a")
    assert await state(orders, 1) == "aborted"
    assert await orders.claim() is None


async def test_what_is_handed_back_is_next_and_no_loss(gateway: Gateway) -> None:
    one, other = gateway(max_losses=1), gateway(max_losses=1)
    for number in range(2):
        await one.accept(new(number))
    order = await claimed(one)
    await one.release([order.claim])
    assert (await claimed(other)).id == order.id


async def test_a_postponed_order_holds_up_nobody_and_comes_again(orders: Orders, time: Time) -> None:
    for number in range(2):
        await orders.accept(new(number))
    first = await claimed(orders)
    assert await orders.postpone(first.claim, 30)
    assert int((await claimed(orders)).id, 16) == 1
    assert await orders.claim() is None
    time.seconds += 30
    again = await claimed(orders)
    assert (again.id, again.tries) == (first.id, 2)


async def test_an_order_is_not_postponed_for_ever(orders: Orders, time: Time) -> None:
    await orders.accept(new(1))
    time.seconds += 99
    order = await claimed(orders)
    assert not await orders.postpone(order.claim, 2)
    assert await state(orders, 1) == "running"
    assert await orders.finish(order.claim, "failed", error={})


async def test_open_orders_are_bounded_by_key_and_in_total(gateway: Gateway) -> None:
    orders = gateway(max_open_per_key=2, max_open=3)
    for number in range(2):
        await orders.accept(new(number, "a"))
    await claimed(orders)
    with pytest.raises(Overloaded, match="2 of your jobs"):
        await orders.accept(new(2, "a"))
    await orders.accept(new(3, "b"))
    with pytest.raises(Overloaded, match="Too many jobs"):
        await orders.accept(new(4, "c"))
    await orders.abort(new(0).id, "a")
    await orders.accept(new(5, "c"))


async def test_a_list_has_the_newest_first_in_pages(orders: Orders) -> None:
    for number in range(5):
        await orders.accept(new(number))
    await orders.abort(new(3).id, "a")
    page = await orders.listed("a", state=None, limit=2, before=None)
    assert [int(order.id, 16) for order in page] == [4, 3]
    rest = await orders.listed("a", state=None, limit=9, before=page[-1].number)
    assert [int(order.id, 16) for order in rest] == [2, 1, 0]
    aborted = await orders.listed("a", state="aborted", limit=9, before=None)
    assert [int(order.id, 16) for order in aborted] == [3]


async def test_results_expire_and_orders_are_forgotten(orders: Orders, time: Time) -> None:
    await orders.accept(new(1))
    order = await claimed(orders)
    assert await orders.with_results([order.claim, "0" * 32]) == {order.claim}
    await orders.finish(order.claim, "done", answer="{}")
    time.seconds += 999
    assert await orders.expire_due() == []
    assert await orders.with_results([order.claim]) == {order.claim}
    time.seconds += 1
    assert await state(orders, 1) == "expired"
    assert [one.state for one in await orders.listed("a", state="expired", limit=1, before=None)]
    assert await orders.expire_due() == [order.claim]
    assert await orders.expire_due() == []
    assert await orders.with_results([order.claim]) == set()
    time.seconds += 999
    await orders.forget()
    assert await state(orders, 1) == "expired"
    time.seconds += 1
    await orders.forget()
    assert await state(orders, 1) is None


async def test_what_is_open_is_never_forgotten(orders: Orders, time: Time) -> None:
    for number in range(2):
        await orders.accept(new(number))
    await claimed(orders)
    time.seconds += 1e6
    await orders.expire_due()
    await orders.forget()
    assert [await state(orders, number) for number in range(2)] == ["running", "queued"]


async def test_each_end_is_told_once_and_remembered_until_it_is(
    url: str, gateway: Gateway, time: Time
) -> None:
    orders = gateway()
    for number in range(3):
        await orders.accept(replace(new(number, webhook="https://example.com/"), id=f"{number:032x}"))
    await orders.accept(new(3))
    done, failed = await claimed(orders), await claimed(orders)
    await orders.finish(done.claim, "done", answer="{}")
    await orders.finish(done.claim, "failed", error={})
    await orders.finish(failed.claim, "failed", error={})
    for number in (2, 3):
        await orders.abort(new(number).id, "a")
        await orders.abort(new(number).id, "a")
    database = Database(url, time.now)
    deliveries = Deliveries(database)
    found = [await deliveries.claim(60) for _ in range(4)]
    assert sorted(int(one.order, 16) for one in found if one) == [0, 1, 2]
    assert found[0] is not None
    assert (found[0].url, found[0].tries, found[0].age) == ("https://example.com/", 1, 0)
    time.seconds += 1e6
    await orders.expire_due()
    await orders.forget()
    assert [await state(orders, number) is None for number in range(4)] == [False, False, False, True]
    again = await deliveries.claim(60)
    assert again is not None
    assert (again.tries, again.age) == (2, 1e6)
    await deliveries.postpone(again.id, 30)
    time.seconds += 29
    assert again.id not in [one.id for _ in range(3) if (one := await deliveries.claim(600))]
    time.seconds += 1
    last = await deliveries.claim(60)
    assert last is not None
    assert last.id == again.id
    await deliveries.end(last.id)
    await orders.forget()
    assert await orders.find(last.order) is None
    await database.close()
