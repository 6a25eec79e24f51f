from collections.abc import Mapping

import pytest
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger, ReplicaState
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatusOverview,
    ServeStatus,
)

from deployments.watch import Watch, pause


class Cluster:
    """Serve's status, a clock and the replicas' answers, all set by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.status = ServeStatus()
        self.asked: list[str] = []
        self.watch = Watch(lambda: self.status, self.sha256_of, restart_seconds=60, clock=lambda: self.now)

    async def sha256_of(self, application: str) -> str:
        self.asked.append(application)
        return f"digest {len(self.asked)}"

    async def see(
        self,
        replicas: Mapping[ReplicaState, int],
        deployment: DeploymentStatus = DeploymentStatus.HEALTHY,
        application: ApplicationStatus = ApplicationStatus.RUNNING,
        deployed_at: float = 1.0,
    ) -> bool:
        seen = DeploymentStatusOverview(deployment, DeploymentStatusTrigger.UNSPECIFIED, dict(replicas), "")
        overview = ApplicationStatusOverview(application, "", deployed_at, {"Diffusion": seen})
        self.status = ServeStatus(applications={"demo": overview})
        await self.watch.look()
        return self.watch.takes_jobs("demo")


RUNNING = {ReplicaState.RUNNING: 1}
STARTING = {ReplicaState.STARTING: 1}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


async def test_nothing_takes_jobs_before_it_was_seen(cluster: Cluster) -> None:
    assert not cluster.watch.takes_jobs("demo")
    await cluster.watch.look()
    assert not cluster.watch.takes_jobs("demo")


async def test_a_running_replica_takes_jobs(cluster: Cluster) -> None:
    assert await cluster.see(RUNNING)


async def test_a_first_start_does_not(cluster: Cluster) -> None:
    assert not await cluster.see(STARTING, DeploymentStatus.UPDATING, ApplicationStatus.DEPLOYING)
    assert not await cluster.see({}, DeploymentStatus.DEPLOY_FAILED, ApplicationStatus.DEPLOY_FAILED)


async def test_scaled_to_zero_takes_jobs_and_wakes(cluster: Cluster) -> None:
    assert await cluster.see({})
    assert await cluster.see(STARTING, DeploymentStatus.UPSCALING)
    assert not cluster.asked


async def test_a_lost_replica_is_waited_for_as_long_as_a_restart_takes(cluster: Cluster) -> None:
    await cluster.see(RUNNING)
    lost = (STARTING, DeploymentStatus.UNHEALTHY, ApplicationStatus.UNHEALTHY)
    cluster.now += 59
    assert await cluster.see(*lost)
    cluster.now += 2
    assert not await cluster.see(*lost)
    assert await cluster.see(RUNNING)


async def test_what_was_seen_stays_true_while_serve_does_not_answer(cluster: Cluster) -> None:
    await cluster.see(RUNNING)
    cluster.now += 3600
    assert cluster.watch.takes_jobs("demo")


async def test_a_deleted_application_takes_none_at_once(cluster: Cluster) -> None:
    await cluster.see(RUNNING)
    assert not await cluster.see(RUNNING, application=ApplicationStatus.DELETING)


async def test_an_application_that_is_built_anew_goes_on_taking_jobs(cluster: Cluster) -> None:
    await cluster.see(RUNNING)
    building = ApplicationStatusOverview(ApplicationStatus.DEPLOYING, "", 2.0, {})
    cluster.status = ServeStatus(applications={"demo": building, "new": building})
    await cluster.watch.look()
    assert cluster.watch.takes_jobs("demo")
    assert not cluster.watch.takes_jobs("new")


async def test_the_digest_is_asked_for_once_per_deployment(cluster: Cluster) -> None:
    await cluster.see(RUNNING)
    await cluster.see(RUNNING)
    assert cluster.watch.sha256("demo") == "digest 1"
    await cluster.see(RUNNING, deployed_at=2.0)
    assert cluster.watch.sha256("demo") == "digest 2"
    assert cluster.asked == ["demo", "demo"]


def test_a_status_that_takes_long_is_read_less_often() -> None:
    assert pause(0.001) == 1.0
    assert pause(0.2) == pytest.approx(4.0)
    assert pause(60.0) == 10.0
