"""What is run together, and what is compared before it."""

from argparse import Namespace

from benchmarks.serving import DEFAULT_SYSTEMS, Plan, checked, phases, plans
from benchmarks.workloads import Traffic

TRAFFIC = Traffic(64, 4, 0, 1.0, checkpoints=("a", "b", "c"))


def plan(*workloads: str, levels: tuple[float, ...] = ()) -> Plan:
    return Plan("stand-in", workloads, ("lock", "atelier"), requests=4, repeats=1, levels=levels)


def test_workloads_of_one_site_share_servers_and_have_those_systems_that_can() -> None:
    args = Namespace(
        model=["stand-in"],
        workload=["mixed", "models", "uniform", "replica-kill"],
        systems=list(DEFAULT_SYSTEMS),
        requests=4,
        repeats=1,
        threads=1,
        checkpoints=8,
    )
    assert [(each.workloads, each.systems) for each in plans(args)] == [
        (("mixed", "uniform"), ("lock", "litserve", "ray", "xinference", "atelier")),
        (("models",), ("lock", "litserve", "ray", "swap", "atelier")),
        (("replica-kill",), ("ray", "atelier")),
    ]


def test_output_is_checked_of_the_last_checkpoint_and_with_a_lora_where_there_are_such() -> None:
    assert [each.body.get("model") for each in checked(plan("models"), TRAFFIC)] == [None, "c"]
    plain, worn = checked(plan("loras"), TRAFFIC)
    assert worn.body["prompt"] == f"{plain.body['prompt']} <lora:lora-0:0.6>"
    assert len(checked(plan("mixed"), TRAFFIC)) == 1


def test_a_replica_dies_at_level_1_alone_and_the_requests_are_the_same() -> None:
    whole, killed = phases(plan("replica-kill"), TRAFFIC, repeat=0)
    assert (whole.kills, killed.kills) == (False, True)
    assert whole.requests == killed.requests


def test_own_levels_are_those_of_slo_alone() -> None:
    levels = [phase.level for phase in phases(plan("slo", "mixed", levels=(0.5, 0.9)), TRAFFIC, repeat=0)]
    assert levels == [0.5, 0.9, 1.0]
