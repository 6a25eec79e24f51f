"""Every family: told from a file's header, loaded whole, and what is particular about its conditioning."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.checkpoint import LoadedCheckpoint, assemble, load_checkpoint, predicts_noise
from engine.conditioning import Cond
from engine.denoiser import Denoiser
from engine.engine import Engine
from engine.families import told
from engine.families.family import ARCHITECTURE_KEY, Kind, text_module
from engine.header import read_header
from engine.lora.file import layers
from engine.lora.store import LoraSettings
from engine.ops import Decode, Evaluate
from engine.prepared import Prepared
from engine.programs import draw
from engine.prompts import parse_emphasis
from engine.protocol import CheckpointError, InitImage, Job
from engine.registry import Registry
from engine.schedules import ALIGN_YOUR_STEPS_SDXL, scaled_linear
from engine.tokenizer import load_tokenizer
from tests.drawing import begun_with, masked
from tests.jobs import make_job
from tests.tiny import FAMILIES, SIZES, read_checkpoint, tiny_modules, write_checkpoint

CPU = torch.device("cpu")


def assembled(family: str, prediction: str = "epsilon", seed: int = 0) -> LoadedCheckpoint:
    kind = Kind(family=FAMILIES[family], prediction=prediction)
    return assemble(*tiny_modules(seed, family), kind=kind, device=CPU, dtype=torch.float32)


def scored(cond: Cond, family: str) -> Cond:
    """As a prompt is conditioned on, in a family that has aesthetic scores."""
    score, _ = FAMILIES[family].aesthetic_scores or (None, None)
    return replace(cond, aesthetic_score=score)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {
        name: write_checkpoint(folder / f"{name}.safetensors", dtype=torch.float32, family=name)
        for name in FAMILIES
    }


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_file_is_its_family_and_computes_what_its_modules_computed(
    files: dict[str, Path], family: str
) -> None:
    loaded = load_checkpoint(files[family], device="cpu")
    assert loaded.kind.family is FAMILIES[family]
    direct = assembled(family, loaded.kind.prediction or "")
    results = []
    for checkpoint in (loaded, direct):
        (cond,) = checkpoint.conditioner([parse_emphasis("a (cat:1.2)")], 1)
        cond = scored(cond, family)
        (denoised,) = checkpoint.denoiser(
            x=[torch.ones(4, 8, 8)], sigma=[2.0], conds=[[(cond, 1.0)]], uncond=[None], guidance_scale=[1.0]
        )
        results.append((cond.context, denoised, torch.tensor(checkpoint.decoder([denoised])[0])))
    for a, b, tolerance in zip(*results, (1e-5, 1e-4, 1), strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=0, atol=tolerance)


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_stays_near_float32(files: dict[str, Path], family: str, dtype: str) -> None:
    results = []
    for each in ("float32", dtype):
        checkpoint = load_checkpoint(files[family], device="cpu", dtype=each)
        (cond,) = checkpoint.conditioner([parse_emphasis("a cat")], 1)
        cond = scored(cond, family)
        (denoised,) = checkpoint.denoiser(
            x=[torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))],
            sigma=[2.0],
            conds=[[(cond, 1.0)]],
            uncond=[cond.zeros()],
            guidance_scale=[2.0],
        )
        results.append(denoised)
    exact, rough = results
    assert rough.dtype is torch.float32
    assert float((exact - rough).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_every_text_encoder_has_to_be_whole(files: dict[str, Path], tmp_path: Path, family: str) -> None:
    weights, metadata = read_checkpoint(files[family])
    last = [name for name in weights if ".encoder.layers.1." in name or ".resblocks.1." in name]
    for name in (last[0], last[-1]):
        path = tmp_path / "x.safetensors"
        save_file({n: t for n, t in weights.items() if n != name}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=r"text encoder.*does not fit"):
            load_checkpoint(path, device="cpu")


def test_sdxl_without_its_size_embedding_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    weights, metadata = read_checkpoint(files["sdxl"])
    del weights["model.diffusion_model.label_emb.0.0.weight"]
    save_file(weights, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"UNet does not fit.*label_emb"):
        load_checkpoint(tmp_path / "x.safetensors", device="cpu")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight", (2, 40)),
        ("first_stage_model.decoder.mid.attn_1.q.weight", (16, 8, 1, 1)),
        ("model.diffusion_model.out.2.weight", (3, 32, 3, 3)),
    ],
)
def test_tensors_of_other_shapes_are_refused(
    files: dict[str, Path], tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    weights, metadata = read_checkpoint(files["sd2"])
    save_file({**weights, name: torch.zeros(shape)}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"does not fit the architecture: .*(other shapes|, not \()"):
        load_checkpoint(tmp_path / "x.safetensors", device="cpu")


@pytest.mark.parametrize("sizes", ["{", "[]", '{"unet": 1}'])
def test_sizes_that_cannot_be_read_are_refused(files: dict[str, Path], tmp_path: Path, sizes: str) -> None:
    save_file(
        read_checkpoint(files["sd1"])[0], tmp_path / "x.safetensors", metadata={ARCHITECTURE_KEY: sizes}
    )
    with pytest.raises(CheckpointError, match=ARCHITECTURE_KEY):
        load_checkpoint(tmp_path / "x.safetensors", device="cpu")


def described(path: Path, *marks: str, **metadata: str) -> Kind:
    """What a header of an SD 2.x file with these tensors and this metadata says."""
    names = {
        "cond_stage_model.model.token_embedding.weight": [1],
        "model.diffusion_model.input_blocks.0.0.weight": [1, 4, 1, 1],
        "first_stage_model.decoder.x": [1],
        **{mark: [0] for mark in marks},
    }
    entries: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, shape in names.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    with path.open("rb") as file:
        return told(read_header(file))


def test_prediction_is_told_by_marks_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    assert described(path).prediction is None
    assert described(path, "v_pred").prediction == "v"
    assert described(path, **{"modelspec.prediction_type": "v"}).prediction == "v"
    assert described(path, **{"modelspec.prediction_type": "epsilon"}).prediction == "epsilon"
    kind = described(path, "v_pred", "ztsnr")
    assert (kind.prediction, kind.zero_terminal_snr) == ("v", True)
    with pytest.raises(CheckpointError, match="not v_pred"):
        described(path, "ztsnr", **{"modelspec.prediction_type": "epsilon"})
    with pytest.raises(CheckpointError, match="'rectified_flow'"):
        described(path, **{"modelspec.prediction_type": "rectified_flow"})


class Predicting(torch.nn.Linear):
    """A UNet that knows that the picture is grey: all of x is noise."""

    def __init__(self, prediction: str) -> None:
        super().__init__(1, 1)
        self.scale = {"epsilon": 1.0, "v": (1 + scaled_linear().sigma_max ** 2) ** -0.5}[prediction]

    def forward(self, x: torch.Tensor, t: torch.Tensor, **_: object) -> tuple[torch.Tensor]:  # type: ignore[override]
        return (x * self.scale,)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_prediction_is_found_out_where_the_file_does_not_say(prediction: str) -> None:
    unknown = replace(assembled("sd2"), denoiser=Denoiser(Predicting(prediction), scaled_linear()))
    assert predicts_noise(unknown) == (prediction == "epsilon")


@torch.inference_mode()
def test_sdxl_conditions_on_both_encoders_and_the_first_chunks_pooled_state() -> None:
    checkpoint = assembled("sdxl")
    first, long, weighted = checkpoint.conditioner(
        [parse_emphasis(text) for text in ("a cat", "a cat BREAK a dog", "a (cat:1.4)")], 1
    )
    assert first.context.shape == (77, 32 + 40)
    assert long.context.shape == (2 * 77, 72)
    assert first.pooled is not None
    assert first.pooled.shape == (24,)
    for other in (long, weighted):
        assert other.pooled is not None
        assert torch.allclose(first.pooled, other.pooled, atol=1e-6)
    assert not torch.allclose(first.context, weighted.context, atol=1e-3)


@torch.inference_mode()
def test_sdxl_and_sd2_ignore_clip_skip() -> None:
    for family in ("sd2", "sdxl"):
        checkpoint = assembled(family)
        a, b = (checkpoint.conditioner([parse_emphasis("a cat")], n)[0].context for n in (1, 2))
        assert torch.equal(a, b)


def sdxl_with_lora(folder: Path) -> LoadedCheckpoint:
    """A LoRA `ink` of both text encoders' first layers, in kohya's names."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for number, width in ((1, 32), (2, 40)):
        layer = f"lora_te{number}_text_model_encoder_layers_0_self_attn_q_proj"
        tensors[f"{layer}.lora_down.weight"] = torch.randn(2, width, generator=generator)
        tensors[f"{layer}.lora_up.weight"] = torch.randn(width, 2, generator=generator)
    layer = "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q"
    tensors[f"{layer}.lora_down.weight"] = torch.randn(2, 32, generator=generator)
    tensors[f"{layer}.lora_up.weight"] = torch.randn(32, 2, generator=generator)
    save_file(tensors, folder / "ink.safetensors")
    return assemble(
        *tiny_modules(family="sdxl"),
        kind=Kind(family=FAMILIES["sdxl"]),
        device=CPU,
        dtype=torch.float32,
        loras=LoraSettings(folder=folder),
    )


@torch.inference_mode()
def test_a_lora_changes_both_encoders_of_sdxl_and_its_unet(tmp_path: Path) -> None:
    checkpoint = sdxl_with_lora(tmp_path)
    lora = checkpoint.loras.get("ink")
    assert lora is not None
    prompt = parse_emphasis("a cat")
    plain, changed = checkpoint.conditioner([prompt, prompt], 1, [(), ((lora, 0.5),)])
    tensors = load_file(tmp_path / "ink.safetensors")
    modules = tiny_modules(family="sdxl")
    for number, module in enumerate(modules[2:], start=1):
        layer = f"lora_te{number}_text_model_encoder_layers_0_self_attn_q_proj"
        path = "text_model.encoder" if number == 2 else "encoder"
        target = module.get_parameter(f"{path}.layers.0.self_attn.q_proj.weight")
        target.add_(0.5 * tensors[f"{layer}.lora_up.weight"] @ tensors[f"{layer}.lora_down.weight"])
    kind = Kind(family=FAMILIES["sdxl"])
    merged = assemble(*modules, kind=kind, device=CPU, dtype=torch.float32)
    (expected,) = merged.conditioner([prompt], 1)
    assert torch.allclose(changed.context, expected.context, atol=1e-5)
    assert changed.pooled is not None
    assert expected.pooled is not None
    assert torch.allclose(changed.pooled, expected.pooled, atol=1e-5)
    assert not torch.allclose(plain.context, expected.context, atol=1e-3)
    assert list(lora.unet) == ["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"]


def test_loras_for_sdxl_find_their_layers_under_the_original_numbers() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**FAMILIES["sdxl"].unet)
        known = layers(unet, *map(text_module, FAMILIES["sdxl"].texts))
    places = {
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k": "unet.down_blocks.1.attentions.0",
        "lora_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_q": "unet.down_blocks.2.attentions.1",
        "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj": "unet.mid_block.attentions.0",
        "lora_unet_output_blocks_5_1_transformer_blocks_0_attn1_to_out_0": "unet.up_blocks.1.attentions.2",
        "lora_te1_text_model_encoder_layers_11_mlp_fc2": "text_encoder.encoder.layers.11.mlp.fc2",
        "lora_te2_text_model_encoder_layers_31_mlp_fc2": "text_encoder_2.text_model.encoder.layers.31.mlp",
    }
    for name, place in places.items():
        assert str(known[name]).startswith(place)
    assert "lora_te_text_model_encoder_layers_0_mlp_fc2" not in known


@torch.inference_mode()
def test_an_embedding_for_sdxl_has_a_part_for_each_encoder(tmp_path: Path) -> None:
    """One that is a word's own vectors changes nothing."""
    modules: Any = tiny_modules(family="sdxl")
    (token,) = load_tokenizer().encode("circle", add_special_tokens=False)
    first, second = (m.get_input_embeddings().weight[[token]].clone() for m in modules[2:])
    folder = tmp_path / "embeddings"
    folder.mkdir()
    save_file({"clip_g": second, "clip_l": first}, folder / "thing.safetensors")
    path = write_checkpoint(tmp_path / "x.safetensors", dtype=torch.float32, family="sdxl")
    checkpoint = load_checkpoint(path, device="cpu", embeddings=folder)
    word, learnt = checkpoint.conditioner([parse_emphasis("a circle"), parse_emphasis("a thing")], 1)
    assert torch.equal(word.context, learnt.context)


def test_sdxl_has_its_own_align_your_steps() -> None:
    assert assembled("sdxl").denoiser.levels.align_your_steps == ALIGN_YOUR_STEPS_SDXL


def test_full_sizes_are_the_published_ones() -> None:
    """Parameters of each model, in millions, as published with them."""
    assert SIZES.keys() == FAMILIES.keys()
    published = {"sd1": (859.5, 123.1), "sd2": (865.9, 340.4), "sdxl": (2567.5, 123.1, 694.7)}
    for family, millions in published.items():
        with torch.device("meta"):
            modules = [UNet2DConditionModel(**FAMILIES[family].unet)]
            modules += [text_module(part) for part in FAMILIES[family].texts]
        sizes = [sum(p.numel() for p in module.parameters()) / 1e6 for module in modules]
        assert sizes == pytest.approx(millions, abs=0.1)


def inpainting() -> LoadedCheckpoint:
    kind = Kind(family=FAMILIES["sd1"], inpainting=True)
    return assemble(*tiny_modules(in_channels=9), kind=kind, device=CPU, dtype=torch.float32)


def test_inpainting_file_is_told_by_its_nine_channels(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "x.safetensors", in_channels=9)
    assert load_checkpoint(path, device="cpu").kind.inpainting


@torch.inference_mode()
def test_inpainting_checkpoint_sees_the_mask_and_the_picture_without_it() -> None:
    checkpoint = inpainting()
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    white = np.zeros((64, 96), np.uint8)
    white[16:40, 24:64] = 255
    job = make_job(width=96, init=init_image(pixels, white), steps=4)
    seen = []
    program = draw(job, Prepared.of(job, Registry(checkpoint)))
    operation = next(program)
    while not isinstance(operation, Decode):
        if isinstance(operation, Evaluate):
            seen += [operation.conds[0][0].beside, operation.uncond.beside if operation.uncond else None]
        (result,) = type(operation).run([operation])
        operation = program.send(result)
    masked = np.where(white[:, :, None] > 0, np.float32(127.5), pixels)
    expected = checkpoint.encoder([masked])[0]
    assert seen
    for beside in seen:
        assert beside is not None
        assert torch.equal(beside[0], torch.from_numpy(white[::8, ::8] / 255).float())
        assert torch.allclose(beside[1:], expected, atol=1e-6)


def init_image(pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]) -> InitImage:
    """Inpainting of the whole picture with an unblurred mask."""
    grey = masked(Image.fromarray(mask))
    return begun_with(Image.fromarray(pixels), grey, denoising_strength=1.0)


def test_rows_with_and_without_a_mask_share_calls_of_an_inpainting_checkpoint() -> None:
    checkpoint = inpainting()
    pixels = np.full((64, 64, 3), 200, np.uint8)
    white = np.zeros((64, 64), np.uint8)
    white[:32] = 255
    jobs = [make_job(id="a"), make_job(id="b", init=init_image(pixels, white), seed=2)]
    alone = [drawn(checkpoint, job)[0] for job in jobs]
    for ours, theirs in zip(drawn(checkpoint, *jobs), alone, strict=True):
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def drawn(checkpoint: LoadedCheckpoint, *jobs: Job) -> list[npt.NDArray[np.uint8]]:
    engine = Engine(checkpoint)
    rows = [engine.add(job) for job in jobs]
    outcomes: dict[int, object] = {}
    while len(engine):
        outcomes |= {done.row.id: done.outcome for done in engine.step()}
    pictures = [outcomes[row] for row in rows]
    assert all(isinstance(picture, np.ndarray) for picture in pictures)
    return [picture for picture in pictures if isinstance(picture, np.ndarray)]


def test_sdxl_rows_of_any_guidance_and_length_share_calls() -> None:
    checkpoint = assembled("sdxl")
    jobs = [
        make_job(id="a", guidance_scale=1.0),
        make_job(id="b", prompt="a cat BREAK a dog AND a fish", seed=2),
        make_job(id="c", negative_prompt="", sampler="DDIM CFG++", seed=3),
    ]
    alone = [drawn(checkpoint, job)[0] for job in jobs]
    for ours, theirs in zip(drawn(checkpoint, *jobs), alone, strict=True):
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
