"""Linear layers and convolutions that multiply 8-bit floats (Micikevicius et al. 2022: E4M3).

Weights have a scale for each output channel; what they are multiplied with is quantised anew at each call,
with a scale for each position of a linear layer and for each row of a convolution. No scale is of two rows.
Products are summed in float32 and come out in bfloat16, which has float32's range.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.protocol import CheckpointError

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0
"""Of FLOAT8."""
SMALLEST = 1e-12
"""What counts as 0, where it is the largest of what shares a scale."""
MULTIPLE = 16
"""Of this are both sides of a matrix that GPUs multiply in FLOAT8."""
CAPABILITY = (8, 9)
"""Compute capability of the first GPUs that do."""
BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")


def check_device(device: torch.device) -> None:
    """Raises CheckpointError for a GPU that cannot. A CPU can, slowly."""
    if device.type == "cuda":
        check_capability(torch.cuda.get_device_capability(device))


def check_capability(capability: tuple[int, int]) -> None:
    if capability < CAPABILITY:
        raise CheckpointError(
            "quality fp8 needs a GPU of compute capability {}.{} or later; this one has {}.{}".format(
                *CAPABILITY, *capability
            )
        )


def quantise(unet: nn.Module) -> None:
    """Replace the layers inside of the UNet's blocks, but for those that embed the time.

    Biases stay as they are. A weight is gone then, and what is copied to its place is quantised.
    """
    for path, layer in list(unet.named_modules()):
        if path.startswith(BLOCKS) and "time_emb" not in path:
            if type(layer) is nn.Linear and _fits(layer.weight):
                unet.set_submodule(path, Float8Linear(layer))
            if type(layer) is nn.Conv2d and _fits(layer.weight) and layer.groups == 1:
                unet.set_submodule(path, Float8Conv2d(layer))


def _fits(weight: Tensor) -> bool:
    return len(weight) % MULTIPLE == 0 and weight[0].numel() % MULTIPLE == 0


class Float8Weight:
    """Stands for a weight (out, in[, kh, kw]): `numbers` (out, [kh · kw ·] in), and `scales` (1, out)."""

    def __init__(self, weight: Tensor) -> None:
        self.shape = weight.shape
        self.device = weight.device
        self.numbers = torch.empty(len(weight), weight[0].numel(), dtype=FLOAT8, device=weight.device)
        self.scales = torch.empty(1, len(weight), device=weight.device)
        self.copy_(weight)

    @property
    def nbytes(self) -> int:
        return self.numbers.nbytes + self.scales.nbytes

    def copy_(self, weight: Tensor) -> None:
        """Quantised, to where the last one was."""
        numbers, scales = quantised(weight.float().movedim(1, -1).flatten(1), dim=1)
        self.numbers.copy_(numbers)
        self.scales.copy_(scales.T)

    def multiplied(self, numbers: Tensor, scales: Tensor) -> Tensor:
        """(m, numbers of a row of the weight) FLOAT8, with scales (m, 1) -> (m, out) bfloat16."""
        return torch._scaled_mm(
            numbers.contiguous(),  # which quantised numbers are not where what they were made of was not
            self.numbers.T,
            scale_a=scales,
            scale_b=self.scales,
            out_dtype=torch.bfloat16,
        )


def quantised(x: Tensor, dim: int | Sequence[int]) -> tuple[Tensor, Tensor]:
    """x in FLOAT8, and the scales to multiply it with, in float32: one for all that lies along `dim`.

    What is not finite stays so, and makes nothing else so but what shares its scale.
    """
    largest = torch.linalg.vector_norm(x, torch.inf, dim, keepdim=True, dtype=torch.float32)
    scales = largest.clamp(min=SMALLEST) / LARGEST
    return (x / scales).to(FLOAT8), scales


class Float8Linear(nn.Linear):
    """In the place of a layer whose weight it takes."""

    weight: Any

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.bias = layer.bias
        del self.weight
        self.weight = Float8Weight(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        numbers, scales = quantised(x.reshape(-1, x.shape[-1]), dim=1)
        product = self.weight.multiplied(numbers, scales)
        return _biased(product.view(*x.shape[:-1], -1).to(x.dtype), self.bias)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight


class Float8Conv2d(nn.Conv2d):
    """In the place of a convolution whose weight it takes.

    Multiplies the weight with all patches, which take as many times the memory of its input, in FLOAT8, as
    the kernel has positions.
    """

    weight: Any

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            cast(tuple[int, int], layer.kernel_size),
            cast(tuple[int, int], layer.stride),
            cast(tuple[int, int], layer.padding),
            padding_mode=layer.padding_mode,
            bias=False,
            device="meta",
        )
        self.bias = layer.bias
        del self.weight
        self.weight = Float8Weight(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        if any(self._reversed_padding_repeated_twice):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = functional.pad(x, self._reversed_padding_repeated_twice, mode=mode)
        numbers, scales = quantised(x, dim=(1, 2, 3))
        patches = self._patches(numbers)
        height, width = patches.shape[1:3]
        product = self.weight.multiplied(
            patches.flatten(0, 2), scales.view(-1, 1).repeat_interleave(height * width, dim=0)
        )
        output = product.view(len(x), height, width, -1).permute(0, 3, 1, 2).to(x.dtype)
        return _biased(output, None if self.bias is None else self.bias[:, None, None])

    def _patches(self, padded: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, height, width, kh · kw · channels): what each position is made of."""
        (kh, kw), (down, right) = self.kernel_size, self.stride
        channels_last = padded.permute(0, 2, 3, 1).contiguous()
        return channels_last.unfold(1, kh, down).unfold(2, kw, right).permute(0, 1, 2, 4, 5, 3).flatten(3)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight


def _biased(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product + bias
