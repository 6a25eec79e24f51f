from pathlib import Path

from ingress.janitor import Janitor
from tests.ingress.fakes import FakeBackend, Time
from tests.ingress.gateways import accepted, found, service_of, settings_in


async def test_results_go_when_their_time_has_come_and_orders_later(tmp_path: Path) -> None:
    time = Time()
    service = service_of(FakeBackend(), settings_in(tmp_path, keep_seconds=100), time.now)
    janitor = Janitor(service)
    id = await accepted(service, prompt="x")
    claimed = await service.orders.claim()
    assert claimed is not None
    await service.results.keep(claimed.claim, [b"picture"])
    await service.orders.finish(claimed.claim, "done", answer="{}")
    time.seconds += 99
    await janitor.expire()
    await janitor.sweep()
    assert await service.results.kept() == {claimed.claim}
    time.seconds += 1
    await janitor.expire()
    assert await service.results.kept() == set()
    assert (await found(service, id)).state == "expired"
    time.seconds += 100
    await janitor.expire()
    assert await service.orders.find(id) is None
    await service.database.close()


async def test_files_of_no_order_are_swept_and_those_being_written_are_not(tmp_path: Path) -> None:
    service = service_of(FakeBackend(), settings_in(tmp_path))
    await accepted(service, prompt="x")
    running = await service.orders.claim()
    assert running is not None
    orphans = [f"{number:032x}" for number in range(1, 1203)]
    for claim in (running.claim, *orphans):
        (tmp_path / "results" / claim).mkdir(parents=True)
        (tmp_path / "results" / claim / "0").touch()
    (tmp_path / "results" / "README").write_text("not ours")
    await Janitor(service).sweep()
    assert {path.name for path in (tmp_path / "results").iterdir()} == {running.claim, "README"}
    await service.database.close()
