"""What the servers are asked. A workload is a function that yields requests and says when each is due."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from benchmarks import gentd26

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
LORAS = 1000
LORA_SHARE = 0.2
"""Of the requests of workload `loras`."""
LORA_ZIPF = 0.75
"""Uses fall with the rank to this power: the ten most popular have a fifth, as in GenTD26."""
LORA_WEIGHTS = (0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Site:
    """What a workload needs of a server, and the `systems` that have it. Those with equal ones share a start.

    `several` checkpoints, of the same architecture; LORAS files of LoRAs; so many `replicas`.
    """

    systems: tuple[str, ...]
    several: bool = False
    loras: bool = False
    replicas: int = 1


OURS = ("atelier", "atelier-bf16")
PLAIN = Site(("lock", "litserve", "ray", "xinference", *OURS))
SEVERAL = Site(("lock", "litserve", "ray", "swap", *OURS), several=True)
WITH_LORAS = Site(("lock", "litserve", "ray", *OURS), loras=True)
TWO_REPLICAS = Site(("ray", *OURS), replicas=2)


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
    `checkpoints` are the names of those that the servers have. Steps are divided by `brief`, for a model on
    which the usual ones would take too long.
    """

    size: int
    count: int
    seed: int
    capacity: float
    level: float = 1.0
    checkpoints: tuple[str, ...] = ("bench",)
    brief: int = 1

    def steps(self, usual: int) -> int:
        return usual if self.brief == 1 else max(2, round(usual / self.brief))


@dataclass(frozen=True)
class Workload:
    """`clients` send one request after the other; None is as many as are due. It runs at each level.

    If it `kills`, a replica dies in the middle, at level 1.
    """

    requests: Callable[[Traffic], Iterator[Request]]
    clients: int | None
    levels: tuple[float, ...] = (1.0,)
    level_is: str = ""
    site: Site = PLAIN
    kills: bool = False


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
        yield request(rng, traffic.size, steps=traffic.steps(20))


def mixed(traffic: Traffic) -> Iterator[Request]:
    """W2: requests that differ in everything but size."""
    rng = random.Random(traffic.seed)
    for _ in range(traffic.count):
        yield request(
            rng,
            traffic.size,
            steps=traffic.steps(rng.choice(STEPS)),
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
        yield replace(of_kind(rng, traffic, rng.choice(SLO_KINDS)), due=due)


def of_kind(rng: random.Random, traffic: Traffic, kind: tuple[int, str, float]) -> Request:
    usual, sampler, guidance = kind
    steps = traffic.steps(usual)
    made = request(rng, traffic.size, steps=steps, sampler_name=sampler, cfg_scale=guidance)
    return replace(made, kind=f"{steps} × {sampler}, {guidance:g}")


def short_beside_long(traffic: Traffic) -> Iterator[Request]:
    """8 steps or 50, as often."""
    rng = random.Random(traffic.seed)
    for _ in range(traffic.count):
        kind, steps = rng.choice([("short", 8), ("long", 50)])
        yield replace(request(rng, traffic.size, steps=traffic.steps(steps)), kind=kind)


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


def models(traffic: Traffic) -> Iterator[Request]:
    """W4: a long tail of checkpoints, mostly 30 steps, as in GenTD26; samplers and guidance as in `mixed`."""
    rng = random.Random(traffic.seed)
    named = gentd26.checkpoints(random.Random(traffic.seed + 1), traffic.checkpoints)
    for model in islice(named, traffic.count):
        usual = rng.random() < gentd26.USUAL_SHARE
        yield request(
            rng,
            traffic.size,
            model=model,
            steps=traffic.steps(gentd26.USUAL_STEPS if usual else rng.choice(STEPS)),
            sampler_name=rng.choice(SAMPLERS),
            cfg_scale=rng.choice(GUIDANCE),
        )


def models_in_bursts(traffic: Traffic) -> Iterator[Request]:
    """W4, open loop: in the long run `level` times the lock's capacity."""
    gaps = gentd26.gaps(random.Random(traffic.seed + 2), traffic.level * traffic.capacity)
    due = 0.0
    for each, gap in zip(models(traffic), gaps, strict=False):
        due += gap
        yield replace(each, due=due)


def loras(traffic: Traffic) -> Iterator[Request]:
    """W5: `mixed`, of which a fifth name one of LORAS LoRAs by Zipf's law."""
    rng = random.Random(traffic.seed)
    shares = [rank**-LORA_ZIPF for rank in range(1, LORAS + 1)]
    for each in mixed(traffic):
        (rank,) = rng.choices(range(LORAS), shares)
        weight, has_one = rng.choice(LORA_WEIGHTS), rng.random() < LORA_SHARE
        if has_one:
            yield replace(with_lora(each, lora_name(rank), weight), kind="with a LoRA")
        else:
            yield replace(each, kind="without")


def lora_name(rank: int) -> str:
    return f"lora-{rank}"


def with_lora(plain: Request, name: str, weight: float) -> Request:
    prompt = f"{plain.body['prompt']} <lora:{name}:{weight}>"
    return replace(plain, body={**plain.body, "prompt": prompt})


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
    "models": Workload(models, clients=16, site=SEVERAL),
    "models-in-bursts": Workload(
        models_in_bursts, clients=None, levels=(0.5,), level_is="of the lock's capacity", site=SEVERAL
    ),
    "loras": Workload(loras, clients=16, site=WITH_LORAS),
    "replica-kill": Workload(
        mixed,
        clients=16,
        levels=(0.0, 1.0),
        level_is="of the repeats lose a replica",
        site=TWO_REPLICAS,
        kills=True,
    ),
}
