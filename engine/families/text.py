"""Text encoders' tensors under transformers' names, from the two layouts that checkpoint files have."""

from collections.abc import Mapping, Sequence

from torch import Tensor

_OPEN_CLIP = (
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    ("ln_final.", "final_layer_norm."),
    ("token_embedding.", "embeddings.token_embedding."),
    ("positional_embedding", "embeddings.position_embedding.weight"),
)


def clip_weights(weights: Mapping[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """Tensors behind the first of `prefixes` that they have, which are transformers' own names."""
    found = {}
    for name, tensor in weights.items():
        for prefix in prefixes:
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] = tensor
                break
    found.pop("embeddings.position_ids", None)
    return found


def open_clip_weights(
    weights: Mapping[str, Tensor], prefix: str, layers: int, *, projection: bool
) -> dict[str, Tensor]:
    """OpenCLIP's tensors behind `prefix`: query, key and value apart, as views; only the first `layers`.

    With `projection` under the names of a model that has one, else the projection is left out.
    """
    own = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
    own.pop("logit_scale", None)
    matrix = own.pop("text_projection", None)
    found = {}
    for name, tensor in own.items():
        for old, new in _OPEN_CLIP:
            name = name.replace(old, new)
        if name.startswith("encoder.layers.") and int(name.split(".")[2]) >= layers:
            continue
        layer, joined, kind = name.partition(".attn.in_proj_")
        if joined:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{layer}.self_attn.{letter}_proj.{kind}"] = part
        else:
            found[name] = tensor
    if not projection:
        return found
    found = {f"text_model.{name}": tensor for name, tensor in found.items()}
    if matrix is not None:
        found["text_projection.weight"] = matrix.T
    return found
