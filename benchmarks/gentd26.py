"""Which checkpoint a request names, and when requests come: fitted to what is published of GenTD26.

GenTD26 is Alibaba's trace of 26,823 Stable Diffusion requests in 23 days (clusterdata,
cluster-trace-v2026-GenAI). Its data come without a licence and are not here: these are generators that have
the same marginals. Standard library only.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

COVERED: Mapping[int, float] = {1: 0.307, 5: 0.704, 10: 0.866, 20: 0.939, 87: 1.0}
"""Share of all requests that the so many most popular checkpoints have."""
SWITCHES = 0.746
"""How often a request names another checkpoint than the one before it."""
USUAL_STEPS, USUAL_SHARE = 30, 0.906
GAP_CV = 12.0
"""Standard deviation of the time between two requests over its mean; 1 is Poisson."""


def popularity(count: int) -> list[float]:
    """Shares of the `count` most popular of the 87 checkpoints, in order, made to sum to 1.

    Between two ranks that are published nothing is known: there all are equally popular.
    """
    shares = [
        (covers - covered) / (rank - above)
        for (above, covered), (rank, covers) in pairwise([(0, 0.0), *COVERED.items()])
        for _ in range(rank - above)
    ]
    if not 1 <= count <= len(shares):
        raise ValueError(f"checkpoints: {count} is not from 1 to {len(shares)}")
    return [share / sum(shares[:count]) for share in shares[:count]]


def checkpoints(rng: random.Random, names: Sequence[str]) -> Iterator[str]:
    """Without end. The next request stays with its predecessor's checkpoint as often as SWITCHES asks for
    with all 87; otherwise it names one by popularity, which may be the same."""
    shares = popularity(max(COVERED))
    stays = 1 - SWITCHES / (1 - math.fsum(share**2 for share in shares))
    own = popularity(len(names))
    (name,) = rng.choices(names, own)
    while True:
        yield name
        if rng.random() >= stays:
            (name,) = rng.choices(names, own)


def gaps(rng: random.Random, rate: float) -> Iterator[float]:
    """Seconds between requests, without end: `rate` a second in the long run, with GAP_CV.

    Hyperexponential with balanced means: half of the time goes by within bursts of about 290 requests at
    twice the rate, the other half between them.
    """
    square = GAP_CV**2
    in_burst = (1 + math.sqrt((square - 1) / (square + 1))) / 2
    while True:
        share = in_burst if rng.random() < in_burst else 1 - in_burst
        yield rng.expovariate(2 * share * rate)
