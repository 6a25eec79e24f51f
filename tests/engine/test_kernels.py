"""Which kernel attends: the fastest of those that answer what torch answers."""

import pytest
import torch
from torch import Tensor

from engine import kernels
from engine.kernels import TORCH, Layer, choose, fastest, measure


@pytest.mark.parametrize(
    ("seconds", "name"),
    [
        ({TORCH: 1.0, "flash": 0.5, "cudnn": 0.4}, "cudnn"),
        ({TORCH: 1.0, "flash": None, "cudnn": 0.6}, "cudnn"),
        ({TORCH: 1.0, "flash": 0.96}, TORCH),
        ({TORCH: 1.0, "flash": None}, TORCH),
    ],
)
def test_the_fastest_that_runs_is_chosen_but_torchs_own_where_it_hardly_matters(
    seconds: dict[str, float | None], name: str
) -> None:
    assert fastest(seconds) == name


LAYER = Layer(heads=2, width=8, queries=16, crossed=True)


def test_a_kernel_that_fails_or_answers_something_else_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    own = kernels.kernels()[TORCH]

    def refusing(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this head size")

    def wrong(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return own(query, key, value) * 1.1

    known = {TORCH: own, "same": own, "refusing": refusing, "wrong": wrong}
    monkeypatch.setattr(kernels, "kernels", lambda: known)
    seconds = measure(LAYER, torch.zeros(1))
    assert {name for name, taken in seconds.items() if taken is None} == {"refusing", "wrong"}


def test_on_a_cpu_torch_chooses_unless_a_name_is_given() -> None:
    assert choose([LAYER], torch.zeros(1)) == {(8, True): TORCH}
    assert choose([LAYER], torch.zeros(1), "flash") == {(8, True): "flash"}


def test_backends_that_a_cpu_has_not_are_found_out() -> None:
    seconds = measure(LAYER, torch.zeros(1))
    assert [name for name, taken in seconds.items() if taken is not None] == [TORCH]
