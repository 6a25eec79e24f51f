"""What the servers are asked. A workload is a function that yields requests and says when each is due."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

SAMPLERS = ("Euler", "Euler a", "Heun", "DPM++ 2M Karras", "DPM++ 2M SDE Karras", "DDIM")
STEPS = (4, 8, 20, 30, 50)
GUIDANCE = (1.0, 5.0, 7.0, 9.0)
SHAPES = ((2, 2), (2, 3), (3, 2), (3, 3))
"""Width and height of workload `sizes`, in halves of the model's size."""
SLO_KINDS = (
    (4, "Euler a", 1.0),
    (8, "DPM++ 2M Karras", 7.0),
    (20, "Euler", 7.0),
    (20, "Euler a", 5.0),
    (20, "DDIM", 9.0),
    (30, "DPM++ 2M SDE Karras", 7.0),
    (30, "Heun", 5.0),
    (50, "Euler", 7.0),
)
"""Steps, sampler, guidance: few enough to measure each alone on each system."""
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange")
THINGS = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
BURST = 10
"""How many times more requests come during a burst."""
PATIENCE = 4
"""Those who leave do so within the time that the lock needs for this many pictures."""


@dataclass(frozen=True)
class Request:
    """One HTTP call. It is `due` so many seconds after the phase began; who `leaves` does so many seconds
    after sending it. Figures are told by `kind` too."""

    body: Mapping[str, Any]
    kind: str = ""
    due: float = 0.0
    leaves: float | None = None


@dataclass(frozen=True)
class Traffic:
    """What requests are made from.

    `size` is the side of a usual picture in pixels, `capacity` the pictures a second that the lock draws,
    so that every system meets the same requests at the same times. `level` is one of the workload's.
    """

    size: int
    count: int
    seed: int
    capacity: float
    level: float = 1.0


@dataclass(frozen=True)
class Workload:
    """`clients` send one request after the other; None is as many as are due. It runs at each level."""

    requests: Callable[[Traffic], Iterator[Request]]
    clients: int | None
    levels: tuple[float, ...] = (1.0,)
    level_is: str = ""


def request(rng: random.Random, size: int, **settings: Any) -> Request:
    """A picture of something, 20 Euler steps, guidance 7 unless `settings` say otherwise."""
    body = {
        "prompt": f"a {rng.choice(COLOURS)} {rng.choice(THINGS)} on a {rng.choice(COLOURS)} background",
        "negative_prompt": rng.choice(["", rng.choice(COLOURS)]),
        "seed": rng.randrange(2**32),
        "steps": 20,
        "sampler_name": "Euler",
        "cfg_scale": 7.0,
        "width": size,
        "height": size,
    }
    return Request(body | settings)


def uniform(traffic: Traffic) -> Iterator[Request]:
    """W1: all settings equal, which is where batching whole requests is at its best."""
    rng = random.Random(traffic.seed)
    for _ in range(traffic.count):
        yield request(rng, traffic.size)


def mixed(traffic: Traffic) -> Iterator[Request]:
    """W2: requests that differ in everything but size."""
    rng = random.Random(traffic.seed)
    for _ in range(traffic.count):
        yield request(
            rng,
            traffic.size,
            steps=rng.choice(STEPS),
            sampler_name=rng.choice(SAMPLERS),
            cfg_scale=rng.choice(GUIDANCE),
        )


def sizes(traffic: Traffic) -> Iterator[Request]:
    """W3: `mixed` in four sizes."""
    rng = random.Random(traffic.seed)
    for each in mixed(traffic):
        width, height = (halves * traffic.size // 2 for halves in rng.choice(SHAPES))
        yield replace(each, body={**each.body, "width": width, "height": height})


def slo(traffic: Traffic) -> Iterator[Request]:
    """Poisson arrivals at `level` times the lock's capacity, for equally long at every level."""
    rng = random.Random(traffic.seed)
    due = 0.0
    for _ in range(max(traffic.count, round(traffic.count * traffic.level))):
        due += rng.expovariate(traffic.level * traffic.capacity)
        yield replace(of_kind(rng, traffic.size, rng.choice(SLO_KINDS)), due=due)


def of_kind(rng: random.Random, size: int, kind: tuple[int, str, float]) -> Request:
    steps, sampler, guidance = kind
    made = request(rng, size, steps=steps, sampler_name=sampler, cfg_scale=guidance)
    return replace(made, kind=f"{steps} × {sampler}, {guidance:g}")


def short_beside_long(traffic: Traffic) -> Iterator[Request]:
    """8 steps or 50, as often."""
    rng = random.Random(traffic.seed)
    for _ in range(traffic.count):
        kind, steps = rng.choice([("short", 8), ("long", 50)])
        yield replace(request(rng, traffic.size, steps=steps), kind=kind)


def burst(traffic: Traffic) -> Iterator[Request]:
    """`mixed` at `level` times the lock's capacity, and ten times as many in the middle half."""
    rng = random.Random(traffic.seed)
    due = 0.0
    for i, each in enumerate(mixed(traffic)):
        in_burst = traffic.count <= 4 * i < 3 * traffic.count
        due += rng.expovariate(traffic.level * traffic.capacity * (BURST if in_burst else 1))
        yield replace(each, kind="in the burst" if in_burst else "beside it", due=due)


def disconnects(traffic: Traffic) -> Iterator[Request]:
    """`mixed`, of which a share of `level` leave before their picture can be there, or when it is."""
    rng = random.Random(traffic.seed)
    for each in mixed(traffic):
        leaves, patience = rng.random() < traffic.level, rng.random() * PATIENCE / traffic.capacity
        yield replace(each, leaves=patience if leaves else None)


WORKLOADS: Mapping[str, Workload] = {
    "uniform": Workload(uniform, clients=16),
    "mixed": Workload(mixed, clients=16),
    "sizes": Workload(sizes, clients=16),
    "slo": Workload(
        slo,
        clients=None,
        levels=(0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0),
        level_is="of the lock's capacity",
    ),
    "short-beside-long": Workload(short_beside_long, clients=8),
    "burst": Workload(burst, clients=None, levels=(0.5,), level_is="of the lock's capacity beside the burst"),
    "disconnects": Workload(disconnects, clients=16, levels=(0.0, 0.3), level_is="of the clients leave"),
}

NOT_YET: Mapping[str, str] = {
    "models": "W4: 20 to 87 checkpoints by Zipf's law, in bursts",
    "loras": "W5: 1,000 LoRAs by Zipf's law on a fifth of the requests",
    "replica-kill": "W8: a replica dies under load",
}
"""Workloads that are planned; the numbers are theirs in the plan of this suite."""
