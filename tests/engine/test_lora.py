"""LoRA files, their names and their store; rows that share a call with LoRAs of their own."""

import dataclasses
import hashlib
import json
import struct
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.lora.file import Layer, Lora, LowRank, layers
from engine.lora.layers import RowLoras, Weighted
from engine.lora.store import LoraSettings, LoraStore
from engine.protocol import LoraError
from tests import loras
from tests.tiny import tiny_modules

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def modules() -> tuple[nn.Module, nn.Module]:
    unet, _, text_encoder = tiny_modules()
    for module in (unet, text_encoder):
        module.eval().requires_grad_(False)
    return unet, text_encoder


@pytest.fixture(scope="module")
def known(modules: tuple[nn.Module, nn.Module]) -> dict[str, Layer]:
    return layers(*modules)


@pytest.fixture
def store(tmp_path: Path, known: dict[str, Layer]) -> Callable[..., LoraStore]:
    def make(max_bytes: int = 2**30, dtype: torch.dtype = torch.float32, **options: Any) -> LoraStore:
        settings = LoraSettings(folder=tmp_path, max_bytes=max_bytes)
        return LoraStore(settings, known, device=CPU, dtype=dtype, **options)

    return make


def loaded(store: LoraStore, name: str) -> Lora:
    lora = store.get(name)
    assert lora is not None
    return lora


Layout = Callable[[loras.Changes, nn.Module], dict[str, Tensor]]
LAYOUTS: dict[str, Layout] = {
    "kohya": lambda changes, unet: loras.kohya(changes),
    "kohya, original blocks": loras.kohya_ldm,
    "diffusers": lambda changes, unet: loras.peft(changes),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layer_is_found_in_every_layout(
    tmp_path: Path, store: Callable[..., LoraStore], modules: tuple[nn.Module, nn.Module], layout: str
) -> None:
    unet, text_encoder = modules
    changes = loras.random_changes(unet, text_encoder, seed=1)
    loras.write(tmp_path / "all.safetensors", LAYOUTS[layout](changes, unet))
    lora = loaded(store(), "all")
    found = {f"unet.{path}": c for path, c in lora.unet.items()}
    found |= {f"text_encoder.{path}": c for path, c in lora.text_encoder.items()}
    assert found.keys() == changes.keys()
    for name, change in changes.items():
        assert torch.equal(found[name].down, change["down"]), name
        assert torch.equal(found[name].up, change["up"]), name
        assert found[name].scale == (1.0 if layout == "diffusers" else 0.5), name


@pytest.mark.parametrize(
    ("layer", "ending"),
    [
        ("unet.{unet}.processor.to_q", "_lora.{}.weight"),
        ("unet.{unet}.to_q", ".lora.{}.weight"),
        ("{unet}.to_q", ".lora_{}.weight"),
        ("base_model.model.{unet}.to_q", ".lora_{}.default.weight"),
        ("text_encoder.text_model.{text}.to_q", "_lora.{}.weight"),
        ("text_encoder.{text}.q_proj", ".lora_linear_layer.{}.weight"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", ".lora_{}.weight"),
    ],
)
def test_older_names_are_known(
    tmp_path: Path, store: Callable[..., LoraStore], layer: str, ending: str
) -> None:
    block, text = "down_blocks.0.attentions.0.transformer_blocks.0.attn1", "encoder.layers.0.self_attn"
    key = layer.format(unet=block, text=text) + ending
    down, up = ("A", "B") if "lora_{}" in ending and "te1" not in layer else ("down", "up")
    tensors = {key.format(down): torch.ones(2, 32), key.format(up): torch.ones(32, 2)}
    loras.write(tmp_path / "old.safetensors", tensors)
    lora = loaded(store(), "old")
    found = [*lora.unet, *lora.text_encoder]
    assert found == [f"{text}.q_proj" if "te" in layer and "unet" not in layer else f"{block}.to_q"]


def test_alpha_of_diffusers_files_is_in_the_header(
    tmp_path: Path, store: Callable[..., LoraStore], modules: tuple[nn.Module, nn.Module]
) -> None:
    tensors = loras.peft(loras.random_changes(*modules, seed=1, rank=4, only=["attn1.to_q"]))
    said = {"unet.lora_alpha": 8, "unet.r": 4, "unet.alpha_pattern": {}}
    loras.write(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": json.dumps(said)})
    assert {change.scale for change in loaded(store(), "a").unet.values()} == {2.0}
    said["unet.alpha_pattern"] = {"to_q": 1}
    loras.write(tmp_path / "b.safetensors", tensors, {"lora_adapter_metadata": json.dumps(said)})
    with pytest.raises(LoraError, match="alpha_pattern"):
        store().get("b")


REFUSED = {
    "LoHa": "lora_unet_x.hada_w1_a",
    "LoKr": "lora_unet_x.lokr_w1",
    "DoRA": "lora_unet_x.dora_scale",
    "OFT": "lora_unet_x.oft_blocks",
    "IA3": "lora_unet_x.on_input",
    "GLoRA": "lora_unet_x.a1.weight",
    "full difference": "lora_unet_x.diff",
    "norm difference": "lora_unet_x.w_norm",
    "bundled embeddings": "bundle_emb.x.string_to_param.*",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused_by_name(tmp_path: Path, store: Callable[..., LoraStore], kind: str) -> None:
    loras.write(tmp_path / "x.safetensors", {REFUSED[kind]: torch.ones(2, 2)})
    with pytest.raises(LoraError, match=kind) as caught:
        store().get("x")
    assert str(tmp_path) not in str(caught.value)


K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
DOWN, UP = torch.ones(2, 32), torch.ones(32, 2)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"lora_down": torch.ones(2, 64), "lora_up": UP}, r"attn2.to_k is 32×32 here and 32×64 in the file"),
        ({"lora_down": DOWN}, "no up for layer"),
        ({"lora_down": DOWN, "lora_up": torch.ones(32, 3)}, "malformed"),
        ({"lora_down": torch.ones(2), "lora_up": UP}, "malformed"),
        ({"lora_down": DOWN * torch.nan, "lora_up": UP}, "not finite"),
        ({"lora_down": DOWN.to(torch.int8), "lora_up": UP}, "stored as I8"),
        ({"other": DOWN}, "1 keys of no layer of this checkpoint: .*to_k.other.weight"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, store: Callable[..., LoraStore], tensors: dict[str, Tensor], reason: str
) -> None:
    loras.write(tmp_path / "x.safetensors", {f"{K}.{key}.weight": tensor for key, tensor in tensors.items()})
    with pytest.raises(LoraError, match=reason):
        store().get("x")


def test_layers_of_no_such_name_are_refused(tmp_path: Path, store: Callable[..., LoraStore]) -> None:
    """Another family's: SDXL has ten transformer blocks where this one has one."""
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_9_attn1_to_q"
    loras.write(
        tmp_path / "x.safetensors", {f"{layer}.lora_down.weight": DOWN, f"{layer}.lora_up.weight": UP}
    )
    with pytest.raises(LoraError, match=r"2 keys of no layer of this checkpoint: .*transformer_blocks_9"):
        store().get("x")


def test_finite_in_float32_may_not_be_in_float16(tmp_path: Path, store: Callable[..., LoraStore]) -> None:
    tensors = {f"{K}.lora_down.weight": DOWN * 1e5, f"{K}.lora_up.weight": UP}
    loras.write(tmp_path / "x.safetensors", tensors)
    loaded(store(), "x")
    with pytest.raises(LoraError, match=r"not finite .* in float16"):
        store(dtype=torch.float16).get("x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense that is long enough",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 8) + b'{"a": 1}',
        struct.pack("<Q", 20) + b"[" * 20,
    ],
)
def test_what_is_no_safetensors_file_is_refused(
    tmp_path: Path, store: Callable[..., LoraStore], data: bytes
) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(LoraError, match="no safetensors file") as caught:
        store().get("x")
    assert str(tmp_path) not in str(caught.value)


def test_file_that_is_cut_short_is_refused(
    tmp_path: Path, store: Callable[..., LoraStore], modules: tuple[nn.Module, nn.Module]
) -> None:
    path = loras.write(tmp_path / "x.safetensors", loras.kohya(loras.random_changes(*modules, seed=1)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LoraError, match="no valid safetensors file"):
        store().get("x")


class TestStore:
    @pytest.fixture
    def write(self, tmp_path: Path, modules: tuple[nn.Module, nn.Module]) -> Callable[..., Path]:
        def write(name: str, seed: int = 1, metadata: dict[str, str] | None = None) -> Path:
            changes = loras.random_changes(*modules, seed=seed, only=["attn1.to_q"])
            return loras.write(tmp_path / f"{name}.safetensors", loras.kohya(changes), metadata)

        return write

    def test_file_is_loaded_once_and_anew_when_it_has_changed(
        self, store: Callable[..., LoraStore], write: Callable[..., Path]
    ) -> None:
        write("a", seed=1)
        held = store()
        first = loaded(held, "a")
        assert held.get("a") is first
        replacement = write("b", seed=2)
        replacement.replace(replacement.with_name("a.safetensors"))
        assert loaded(held, "a").digest != first.digest

    def test_least_lately_used_goes_first_but_never_what_is_held(
        self, store: Callable[..., LoraStore], write: Callable[..., Path]
    ) -> None:
        for i, name in enumerate("abcd"):
            write(name, seed=i)
        held = store(max_bytes=2 * loaded(store(), "a").bytes)
        a = loaded(held, "a")
        b, c = weakref.ref(loaded(held, "b")), weakref.ref(loaded(held, "c"))
        assert b() is None  # used more lately than a, which is held
        assert c() is held.get("c")
        d = weakref.ref(loaded(held, "d"))
        assert c() is None
        assert d() is held.get("d")
        assert held.get("a") is a

    def test_held_loras_may_exceed_the_budget_together_but_none_alone(
        self, store: Callable[..., LoraStore], write: Callable[..., Path]
    ) -> None:
        write("a")
        write("b")
        size = loaded(store(), "a").bytes
        held = store(max_bytes=size)
        assert {lora.name for lora in [loaded(held, "a"), loaded(held, "b")]} == {"a", "b"}
        with pytest.raises(LoraError, match="that LoRAs may take"):
            store(max_bytes=size - 1).get("a")

    def test_stem_wins_over_alias_and_shared_aliases_name_nothing(
        self, store: Callable[..., LoraStore], write: Callable[..., Path]
    ) -> None:
        write("one", seed=1, metadata={"ss_output_name": "two"})
        write("two", seed=2)
        write("sub/three", seed=3, metadata={"ss_output_name": "Third"})
        write("four", seed=4, metadata={"ss_output_name": "Same"})
        write("five", seed=5, metadata={"ss_output_name": "same"})
        write("six", seed=6, metadata={"ss_output_name": "None"})
        held = store()
        assert loaded(held, "two").name == "two"
        assert held.get("Third") is held.get("three")
        for unusable in ("third", "Same", "same", "None", "../two", "two.safetensors", ""):
            assert held.get(unusable) is None
        listed = {item.name: (item.alias, item.filename) for item in held.listing()}
        assert listed["three"] == ("Third", "sub/three.safetensors")
        assert listed["two"] == ("two", "two.safetensors")

    def test_new_files_are_found_by_refresh_or_after_a_while(
        self, store: Callable[..., LoraStore], write: Callable[..., Path]
    ) -> None:
        now = [0.0]
        held = store(clock=lambda: now[0])
        write("a")
        assert held.get("a") is None
        held.refresh()
        assert held.get("a")
        write("b")
        now[0] = 60.0
        assert held.get("b")

    def test_hash_is_the_trainers_or_that_of_the_tensors(
        self, store: Callable[..., LoraStore], write: Callable[..., Path]
    ) -> None:
        path = write("a")
        write("b", metadata={"sshs_model_hash": "0123456789abcdef" * 4})
        write("c", metadata={"sshs_model_hash": "<script>"})
        digest = hashlib.sha256(loras.content(path)).hexdigest()
        hashes = [loaded(store(), name).hash for name in "abc"]
        assert hashes == [digest[:12], "0123456789ab", digest[:12]]

    def test_file_that_vanishes_is_unknown(
        self, store: Callable[..., LoraStore], write: Callable[..., Path]
    ) -> None:
        path = write("a")
        held = store()
        path.unlink()
        assert held.get("a") is None

    def test_without_a_folder_there_are_none(self, known: dict[str, Layer]) -> None:
        empty = LoraStore(LoraSettings(), known, device=CPU, dtype=torch.float32)
        assert empty.listing() == []
        assert empty.get("a") is None


class TestRows:
    """Rows of one UNet call against weights merged by hand in float64."""

    @pytest.fixture
    def two(
        self, tmp_path: Path, store: Callable[..., LoraStore], modules: tuple[nn.Module, nn.Module]
    ) -> tuple[list[loras.Changes], list[Lora]]:
        changes = [
            loras.random_changes(*modules, seed=1, rank=3),
            loras.random_changes(*modules, seed=2, rank=5, only=(".attn1.", ".conv", "mlp.fc1")),
        ]
        # One convolution of the second with a mid, as LoCon may have them.
        middle = changes[1]["unet.mid_block.resnets.0.conv1"]
        middle |= {"down": torch.randn(5, 64, 1, 1) / 8, "mid": torch.randn(5, 5, 3, 3) / 6}
        for name, change in zip("ab", changes, strict=True):
            loras.write(tmp_path / f"{name}.safetensors", loras.kohya(change))
        held = store()
        return changes, [loaded(held, name) for name in "ab"]

    @torch.inference_mode()
    def test_every_row_has_its_own(
        self, modules: tuple[nn.Module, nn.Module], two: tuple[list[loras.Changes], list[Lora]]
    ) -> None:
        unet, _ = modules
        (a, b) = two[1]
        rows: list[list[Weighted]] = [[(a, 0.8)], [], [(b, -0.5)], [(a, 0.4), (b, 1.2)], [(a, 0.0)]]
        inputs = unet_inputs(len(rows))
        with RowLoras(unet, lambda lora: lora.unet).added(rows):
            together = unet(**inputs)[0]
        for i, row in enumerate(rows):
            reference = merged_unet(row, two)(**{key: value[i : i + 1] for key, value in inputs.items()})[0]
            assert relative(together[i], reference[0]) < 2e-6, i
        plain = unet(**inputs)[0]
        assert torch.equal(together[1], plain[1])
        assert torch.equal(together[4], plain[4])
        assert relative(together[0], plain[0]) > 0.05

    @torch.inference_mode()
    def test_without_loras_the_module_is_untouched(
        self, modules: tuple[nn.Module, nn.Module], two: tuple[list[loras.Changes], list[Lora]]
    ) -> None:
        unet, _ = modules
        inputs, adding = unet_inputs(2), RowLoras(unet, lambda lora: lora.unet)
        before = unet(**inputs)[0]
        with adding.added([[], []]):
            assert not any(layer._forward_hooks for layer in unet.modules())
            assert torch.equal(unet(**inputs)[0], before)
        with adding.added([[(two[1][0], 1.0)], []]):
            assert any(layer._forward_hooks for layer in unet.modules())
        assert not any(layer._forward_hooks for layer in unet.modules())
        assert torch.equal(unet(**inputs)[0], before)

    @torch.inference_mode()
    def test_mix_of_loras_is_put_together_once(
        self, modules: tuple[nn.Module, nn.Module], two: tuple[list[loras.Changes], list[Lora]]
    ) -> None:
        adding, (a, b) = RowLoras(modules[0], lambda lora: lora.unet), two[1]
        with adding.added([[(a, 1.0)], [(b, 1.0)]]):
            stacks = adding._stacks
        with adding.added([[(b, 0.3)], [], [(a, 1.0)]]):
            assert adding._stacks is stacks
        assert len(stacks) == len(a.unet)

    @torch.inference_mode()
    def test_mix_that_did_not_fit_is_put_together_anew(
        self,
        modules: tuple[nn.Module, nn.Module],
        two: tuple[list[loras.Changes], list[Lora]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        adding, (a, b) = RowLoras(modules[0], lambda lora: lora.unet), two[1]
        ab: list[list[Weighted]] = [[(a, 1.0)], [(b, 1.0)]]
        with adding.added(ab):
            expected = modules[0](**unet_inputs(2))[0]

        def full(*_: object) -> Tensor:
            raise torch.OutOfMemoryError("pretend")

        other = dataclasses.replace(b, digest="other")
        with monkeypatch.context() as patch:
            patch.setattr(torch, "cat", full)
            with pytest.raises(torch.OutOfMemoryError):
                adding.added([[(a, 1.0)], [(other, 1.0)]]).__enter__()
        with adding.added(ab):
            assert torch.equal(modules[0](**unet_inputs(2))[0], expected)

    @torch.inference_mode()
    def test_neighbour_that_overflows_does_no_harm(self) -> None:
        layer = nn.Sequential(nn.Linear(4, 4)).half()
        adding = RowLoras(layer, lambda lora: lora.unet)
        wild = random_lora(down=torch.full((2, 4), 6e4).half(), up=torch.ones(4, 2).half())
        x = torch.full((2, 4), 9.0).half()
        with adding.added([[(wild, 1.0)], []]):
            y = layer(x)
        assert not torch.isfinite(y[0]).all()
        assert torch.equal(y[1], layer(x)[1])

    @torch.inference_mode()
    @pytest.mark.parametrize("shape", [(3, 8), (3, 5, 8), (3, 2, 5, 8)])
    def test_linear_layers_of_any_rank_of_input(self, shape: tuple[int, ...]) -> None:
        layer = nn.Sequential(nn.Linear(8, 6))
        lora = random_lora(down=torch.randn(2, 8), up=torch.randn(6, 2))
        x = torch.randn(shape)
        with RowLoras(layer, lambda lora: lora.unet).added([[(lora, 1.0)], [], [(lora, -2.0)]]):
            y = layer(x)
        change = lora.unet["0"].up @ lora.unet["0"].down
        for row, weight in enumerate([1.0, 0.0, -2.0]):
            assert torch.allclose(y[row], layer(x)[row] + weight * x[row] @ change.T, atol=1e-5)


def random_lora(down: Tensor, up: Tensor) -> Lora:
    """A LoRA of one layer, `0`."""
    return Lora(name="x", hash="", digest="x", bytes=0, unet={"0": LowRank(down, up, 1.0)}, text_encoder={})


def unet_inputs(rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "sample": torch.randn(rows, 4, 8, 8, generator=generator),
        "timestep": torch.linspace(900, 100, rows),
        "encoder_hidden_states": torch.randn(rows, 77, 32, generator=generator),
    }


def merged_unet(row: Sequence[Weighted], two: tuple[list[loras.Changes], list[Lora]]) -> nn.Module:
    unet, _, text_encoder = tiny_modules()
    unet.eval().requires_grad_(False).double()
    for lora, weight in row:
        loras.merge(unet, text_encoder, two[0][two[1].index(lora)], weight)
    return unet.float()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
