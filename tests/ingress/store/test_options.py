import asyncio

from ingress.store import options
from ingress.store.database import Database


async def test_what_one_gateway_sets_the_other_reads(database: Database, other_gateway: Database) -> None:
    await options.save(database, "mia", {}, {"sd_vae": "None", "n_rows": 2.5, "hidden_tabs": ["a"]})
    assert await options.read(other_gateway, "mia") == {"sd_vae": "None", "n_rows": 2.5, "hidden_tabs": ["a"]}


async def test_each_key_has_its_own(database: Database) -> None:
    await options.save(database, "mia", {}, {"n_rows": 1})
    await options.save(database, "", {}, {"n_rows": 2})
    await options.save(database, "mia", {"n_rows": 1}, {})
    assert await options.read(database, "mia") == {}
    assert await options.read(database, "") == {"n_rows": 2}


async def test_what_differs_alone_is_written(database: Database, other_gateway: Database) -> None:
    before = {"n_rows": 1, "tiling": True, "font": "x"}
    await options.save(database, "mia", {}, before)
    await options.save(other_gateway, "mia", before, {**before, "tiling": False, "sd_vae": "None"})
    await options.save(database, "mia", before, {"n_rows": 3, "tiling": True})
    assert await options.read(database, "mia") == {"n_rows": 3, "tiling": False, "sd_vae": "None"}


async def test_an_option_that_two_set_at_once_is_one_of_both(
    database: Database, other_gateway: Database
) -> None:
    gateways = [database, other_gateway]
    await asyncio.gather(
        *(options.save(gateways[i % 2], "mia", {}, {"n_rows": i, "tiling": True}) for i in range(20))
    )
    found = await options.read(database, "mia")
    assert found["n_rows"] in range(20)
    assert found["tiling"] is True
