from pathlib import Path

import pytest
from pydantic import ValidationError

from deployments.config import CheckpointConfig, GatewayConfig, Offer
from engine.quality import QUALITIES


def test_a_checkpoint_needs_a_name_and_a_path() -> None:
    config = CheckpointConfig.model_validate({"name": "a", "path": "a.safetensors"})
    assert config.torch_device == "cpu"
    assert config.ongoing_jobs == config.max_rows


def test_a_gpu_is_used_where_one_is_asked_for() -> None:
    assert CheckpointConfig(name="a", path=Path("a"), num_gpus=0.5).torch_device == "cuda"


def test_yamls_bare_off_is_a_word() -> None:
    config = CheckpointConfig.model_validate(
        {"name": "a", "path": "a", "num_gpus": 1, "compile": False, "cuda_graphs": False}
    )
    assert (config.compile, config.cuda_graphs) == ("off", "off")


@pytest.mark.parametrize(
    ("args", "key"),
    [
        ({"path": "a"}, "name"),
        ({"name": "a"}, "path"),
        ({"name": "a", "path": "a", "num_gpu": 1}, "num_gpu"),
        ({"name": "a", "path": "a", "dtype": "half"}, "dtype"),
        ({"name": "a", "path": "a", "max_rows": 0}, "max_rows"),
        ({"name": "a", "path": "a", "quality": "int8"}, "quality"),
        ({"name": "a", "path": "a", "quality": "fp8"}, "num_gpus"),
        ({"name": "a", "path": "a", "quality": "deepcache", "deepcache_interval": 1}, "deepcache_interval"),
        ({"name": "a", "path": "a", "device": "cuda"}, "num_gpus"),
        ({"name": "a", "path": "a", "attention": "flash"}, "attention"),
        ({"name": "a", "path": "a", "attention": "fast", "num_gpus": 1}, "attention"),
        ({"name": "a", "path": "a", "compile": "default"}, "compile"),
        ({"name": "a", "path": "a", "compile": True, "num_gpus": 1}, "compile"),
        ({"name": "a", "path": "a", "compile": "default", "num_gpus": 1, "strict": True}, "compile"),
        ({"name": "a", "path": "a", "cuda_graphs": "on", "num_gpus": 1}, "cuda_graphs"),
        ({"name": "a", "path": "a", "row_counts": [2, 4]}, "row_counts"),
        ({"name": "a", "path": "a", "row_counts": [4, 2], "num_gpus": 1}, "row_counts"),
        ({"name": "a", "path": "a", "row_counts": [0], "num_gpus": 1}, "row_counts"),
        ({"name": "a", "path": "a", "row_counts": [2, 32], "num_gpus": 1}, "max_rows"),
        ({"name": "a", "path": "a", "row_counts": [2], "num_gpus": 1, "strict": True}, "row_counts"),
        ({"name": "a", "path": "a", "sizes": [[512, 512]]}, "sizes"),
        ({"name": "a", "path": "a", "sizes": [[512, 500]], "num_gpus": 1}, "sizes"),
        (
            {
                "name": "a",
                "path": "a",
                "replicas": 1,
                "autoscaling": {"max": 2, "target_ongoing_jobs": 4},
            },
            "replicas",
        ),
        (
            {
                "name": "a",
                "path": "a",
                "autoscaling": {"min": 3, "max": 2, "target_ongoing_jobs": 4},
            },
            "autoscaling",
        ),
    ],
)
def test_a_wrong_checkpoint_is_refused_with_the_key_named(args: dict[str, object], key: str) -> None:
    with pytest.raises(ValidationError, match=rf"\b{key}\b"):
        CheckpointConfig.model_validate(args)


def test_classes_of_quality_are_the_engines() -> None:
    """An unknown one is answered with all of them."""
    with pytest.raises(ValidationError) as refused:
        CheckpointConfig.model_validate({"name": "a", "path": "a", "quality": "int8"})
    assert all(f"'{name}'" in str(refused.value) for name in QUALITIES)
    for name in QUALITIES:
        CheckpointConfig.model_validate({"name": "a", "path": "a", "quality": name, "num_gpus": 1})


@pytest.mark.parametrize(
    ("args", "key"),
    [
        ({}, "keys_file"),
        ({"auth": "none"}, "auth"),
        ({"auth": "off", "clip_skip": 0}, "clip_skip"),
        ({"auth": "off", "limits": {"max_step": 3}}, "max_step"),
        ({"auth": "off", "checkpoints": []}, "checkpoints"),
        ({"auth": "off", "orders": {"max_opened": 3}}, "max_opened"),
        ({"auth": "off", "orders": {"lease_seconds": 0}}, "lease_seconds"),
        ({"auth": "off", "webhook_networks": ["10.0.0.1/8"]}, "webhook_networks"),
    ],
)
def test_a_wrong_gateway_is_refused_with_the_key_named(args: dict[str, object], key: str) -> None:
    with pytest.raises(ValidationError, match=rf"\b{key}\b"):
        GatewayConfig.model_validate(args)


def test_yaml_reads_a_bare_off_as_false() -> None:
    assert GatewayConfig.model_validate({"auth": False}).auth == "off"


@pytest.mark.parametrize(
    ("user_config", "key"),
    [
        ({}, "checkpoints"),
        ({"checkpoints": []}, "checkpoints"),
        ({"checkpoints": [{"name": "a"}]}, "filename"),
        ({"checkpoints": [{"name": "a", "filename": "/models/a.safetensors"}]}, "filename"),
        ({"checkpoints": [{"name": "a", "filename": "a"}, {"name": "a", "filename": "b"}]}, "a"),
    ],
)
def test_a_wrong_offer_is_refused_with_the_key_named(user_config: dict[str, object], key: str) -> None:
    with pytest.raises(ValidationError, match=rf"\b{key}\b"):
        Offer.model_validate(user_config)


@pytest.mark.parametrize(
    "url", ["mysql://mia:secret@host/name", "mia:secret@host", "postgresql://mia:secret@h:p/n"]
)
def test_a_database_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValidationError, match=r"database\n.*database: ") as refusal:
        GatewayConfig.model_validate({"auth": "off", "database": url})
    assert "secret" not in str(refusal.value)


def test_no_other_error_tells_the_databases_password() -> None:
    with pytest.raises(ValidationError, match="keys_file: needed") as refusal:
        GatewayConfig.model_validate({"database": "postgresql://mia:secret@host/name"})
    assert "secret" not in str(refusal.value)
