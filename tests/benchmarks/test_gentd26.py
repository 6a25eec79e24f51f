"""The generators have the figures that are published of the trace."""

import random
import statistics
from collections import Counter
from itertools import islice, pairwise

import pytest

from benchmarks.gentd26 import GAP_CV, SWITCHES, checkpoints, gaps, popularity

NAMES = [f"checkpoint-{rank}" for rank in range(87)]


@pytest.mark.parametrize(("rank", "share"), [(1, 0.307), (5, 0.704), (10, 0.866), (20, 0.939), (87, 1.0)])
def test_the_most_popular_have_their_published_share(rank: int, share: float) -> None:
    assert sum(popularity(87)[:rank]) == pytest.approx(share)
    drawn = Counter(islice(checkpoints(random.Random(0), NAMES), 50_000))
    assert sum(drawn[name] for name in NAMES[:rank]) / 50_000 == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("count", [1, 8, 87])
def test_shares_of_fewer_fall_with_the_rank_and_sum_to_1(count: int) -> None:
    shares = popularity(count)
    assert len(shares) == count
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("count", [0, 88])
def test_there_are_1_to_87_checkpoints(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} is not from 1 to 87"):
        popularity(count)


def test_the_next_request_names_another_checkpoint_as_often_as_published() -> None:
    drawn = islice(checkpoints(random.Random(1), NAMES), 50_000)
    switches = [before != after for before, after in pairwise(drawn)]
    assert statistics.fmean(switches) == pytest.approx(SWITCHES, abs=0.01)


def test_gaps_have_the_rate_and_the_variation() -> None:
    drawn = list(islice(gaps(random.Random(2), rate=3.0), 400_000))
    assert statistics.fmean(drawn) == pytest.approx(1 / 3, rel=0.1)
    assert statistics.pstdev(drawn) / statistics.fmean(drawn) == pytest.approx(GAP_CV, rel=0.1)
