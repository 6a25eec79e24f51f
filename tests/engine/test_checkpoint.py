"""Files in the original layout: loaded whole or refused with the reason, never half."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import assemble, load_checkpoint
from engine.prompts import parse_emphasis
from engine.protocol import CheckpointError
from tests.tiny import read_checkpoint, tiny_modules, write_checkpoint


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny.safetensors", dtype=torch.float32)


def rewritten(file: Path, target: Path, drop: str = "", rename: tuple[str, str] = ("", "")) -> Path:
    tensors, metadata = read_checkpoint(file)
    weights = {
        name.replace(*rename): tensor
        for name, tensor in tensors.items()
        if not (drop and name.startswith(drop))
    }
    save_file(weights, target, metadata=metadata)
    return target


@torch.inference_mode()
def test_loaded_file_computes_what_its_modules_computed(file: Path) -> None:
    loaded = load_checkpoint(file, device="cpu")
    direct = assemble(*tiny_modules(), device=torch.device("cpu"), dtype=torch.float32)
    assert loaded.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    results = []
    for checkpoint in (loaded, direct):
        (cond,) = checkpoint.conditioner([parse_emphasis("a (cat:1.2)")], 1)
        x = torch.ones(4, 8, 8)
        (denoised,) = checkpoint.denoiser(
            x=[x], sigma=[2.0], conds=[[(cond, 1.0)]], uncond=[None], guidance_scale=[1.0]
        )
        results.append((cond.context, denoised, torch.tensor(checkpoint.decoder([denoised])[0])))
    for a, b, tolerance in zip(*results, (1e-6, 1e-5, 1), strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=0, atol=tolerance)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_stays_near_float32(file: Path, dtype: str) -> None:
    exact, rough = load_checkpoint(file, device="cpu"), load_checkpoint(file, device="cpu", dtype=dtype)
    (cond,) = exact.conditioner([parse_emphasis("a cat")], 1)
    (cond_rough,) = rough.conditioner([parse_emphasis("a cat")], 1)
    assert cond_rough.context.dtype is {"bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    assert torch.allclose(cond.context, cond_rough.context.float(), atol=0.1)
    x = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    a, b = (
        c.denoiser(x=[x], sigma=[2.0], conds=[[(e, 1.0)]], uncond=[None], guidance_scale=[1.0])[0]
        for c, e in ((exact, cond), (rough, cond_rough))
    )
    assert b.dtype is torch.float32
    assert float((a - b).norm() / a.norm()) < 0.05


def test_file_without_the_text_model_level_loads(file: Path, tmp_path: Path) -> None:
    path = rewritten(file, tmp_path / "x.safetensors", rename=("transformer.text_model.", "transformer."))
    load_checkpoint(path, device="cpu")


@pytest.mark.parametrize(
    ("drop", "reason"),
    [
        ("model.diffusion_model.input_blocks.1", "UNet does not fit"),
        ("model.diffusion_model.", "no UNet"),
        ("first_stage_model.", "no VAE"),
        ("cond_stage_model.transformer.text_model.encoder.layers.2", "text encoder does not fit"),
        ("cond_stage_model.", "not a checkpoint of Stable Diffusion 1.x"),
    ],
)
def test_file_with_missing_parts_is_refused(file: Path, tmp_path: Path, drop: str, reason: str) -> None:
    path = rewritten(file, tmp_path / "x.safetensors", drop=drop)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(path, device="cpu")
    assert str(tmp_path) not in str(caught.value)


def test_unet_of_another_kind_is_refused_by_its_channels(file: Path, tmp_path: Path) -> None:
    weights = load_file(file)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    weights[name] = torch.zeros(32, 8, 3, 3)
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="4 input channels"):
        load_checkpoint(tmp_path / "x.safetensors", device="cpu")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"pickle")
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    for name, reason in (
        ("x.ckpt", "not a .safetensors file"),
        ("x.safetensors", "not a valid safetensors file"),
        ("none.safetensors", "there is no file"),
    ):
        with pytest.raises(CheckpointError, match=reason) as caught:
            load_checkpoint(tmp_path / name, device="cpu")
        assert str(tmp_path) not in str(caught.value)


def test_tensors_that_no_module_has_change_nothing(file: Path, tmp_path: Path) -> None:
    weights, metadata = read_checkpoint(file)
    ema = {f"model_ema.{name.replace('.', '')}": -tensor for name, tensor in weights.items()}
    save_file(weights | ema | {"betas": torch.ones(1000)}, tmp_path / "x.safetensors", metadata=metadata)
    plain, full = (load_checkpoint(p, device="cpu") for p in (file, tmp_path / "x.safetensors"))
    assert full.bytes == plain.bytes == sum(w.nbytes for w in weights.values())
    assert all(
        torch.equal(a, b)
        for mine, others in zip(plain.modules, full.modules, strict=True)
        for a, b in zip(mine.parameters(), others.parameters(), strict=True)
    )


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_floats_of_eight_bits_are_loaded_as_what_they_stand_for(
    file: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    tensors, metadata = read_checkpoint(file)
    weights = {
        name: tensor.to(stored) if name.startswith("model.diffusion_model.") else tensor
        for name, tensor in tensors.items()
    }
    save_file(weights, tmp_path / "x.safetensors", metadata=metadata)
    loaded = load_checkpoint(tmp_path / "x.safetensors", device="cpu", dtype="bfloat16")
    own = loaded.denoiser.unet.state_dict()["conv_in.weight"]
    assert torch.equal(own, weights["model.diffusion_model.input_blocks.0.0.weight"].bfloat16())


def test_weights_that_are_not_floats_are_refused(file: Path, tmp_path: Path) -> None:
    """They would be quantised ones, which mean other numbers than they are."""
    name = "model.diffusion_model.input_blocks.0.0.weight"
    weights, metadata = read_checkpoint(file)
    save_file({**weights, name: weights[name].char()}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"UNet does not fit.*stored as int8"):
        load_checkpoint(tmp_path / "x.safetensors", device="cpu")


def with_header(path: Path, entries: object, size: int = 0) -> Path:
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


def entry(dtype: str, shape: object, begin: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("entries", "size", "reason"),
    [
        ({"a": entry("F32", [2], 0, 8)}, 4, "do not fill its 4 bytes"),
        ({"a": entry("F32", [2], 0, 8)}, 12, "do not fill its 12 bytes"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, 12, "do not fill"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 12, 16)}, 16, "do not fill"),
        ({"a": entry("F32", [3], 0, 8)}, 8, "a has not as many bytes as its shape says"),
        ({"a": entry("F32", [-2, -1], 0, 8)}, 8, "cannot be read"),
        ({"a": entry("F32", [2], -8, 0)}, 8, "cannot be read"),
        ({"a": entry("F12", [2], 0, 8)}, 8, "unknown type 'F12'"),
        ({"a": {"dtype": "F32"}}, 0, "cannot be read"),
        ([1], 0, "cannot be read"),
    ],
)
def test_header_that_does_not_add_up_is_refused_before_a_tensor_is_read(
    tmp_path: Path, entries: object, size: int, reason: str
) -> None:
    path = with_header(tmp_path / "x.safetensors", entries, size)
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(path, device="cpu")


def test_header_longer_than_allowed_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**24 + 1) + b"{}")
    with pytest.raises(CheckpointError, match="16777216 are allowed"):
        load_checkpoint(path, device="cpu")


def test_a_pickle_is_not_opened_under_any_name(tmp_path: Path) -> None:
    for name in ("x.safetensors", "x.ckpt", "x.pt", "x"):
        torch.save({"a": torch.zeros(1)}, tmp_path / name)
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / name, device="cpu")


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        ("model.diffusion_model.joint_blocks.0.x", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.proj.weight", "Flux"),
        ("conditioner.embedders.0.model.ln_final.bias", "SDXL refiner"),
    ],
)
def test_families_without_a_module_are_refused_by_name(tmp_path: Path, tensor: str, name: str) -> None:
    path = with_header(tmp_path / "x.safetensors", {tensor: entry("F32", [1], 0, 4)}, 4)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(path, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_missing_device_and_unknown_dtype_are_named(file: Path) -> None:
    with pytest.raises(CheckpointError, match="no CUDA device"):
        load_checkpoint(file, device="cuda")
    with pytest.raises(CheckpointError, match="fp8"):
        load_checkpoint(file, device="cpu", dtype="fp8")
