"""The builders that `serve_config.yaml` names. Importing this costs no torch."""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments.config import DIFFUSION, GATEWAY, CheckpointConfig, GatewayConfig
from deployments.diffusion import Diffusion
from deployments.gateway import Gateway


class Root:
    """Stands in front of a checkpoint's replicas and does nothing.

    Serve takes the root of an application for its HTTP side, and treats it so: in HAProxy mode it gets
    an open port, a long drain, and no router of its own.
    """

    def __init__(self, replicas: DeploymentHandle[Any]) -> None:
        self._replicas = replicas


def build_gateway(config: GatewayConfig) -> Application:
    """What it offers is its `user_config`, see `deployments.config.Offer`."""
    deployment = serve.deployment(name=GATEWAY)(serve.ingress()(Gateway)).options(
        num_replicas=config.num_replicas,
        max_ongoing_requests=config.max_ongoing_requests,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
        health_check_timeout_s=5,
        graceful_shutdown_timeout_s=config.limits.deadline_seconds,
        user_config={},
    )
    return deployment.bind(config)


def build_checkpoint(config: CheckpointConfig) -> Application:
    replicas = serve.deployment(name=DIFFUSION)(Diffusion).options(
        **_how_many(config),
        max_ongoing_requests=2 * config.ongoing_jobs + 8,  # jobs are limited by the router
        max_queued_requests=config.max_queued_jobs,
        ray_actor_options=_resources(config),
        health_check_period_s=2,
        health_check_timeout_s=5,
        graceful_shutdown_timeout_s=config.drain_seconds,
        request_router_config={
            "request_router_class": "deployments.router:BatchRouter",
            "request_router_kwargs": {"jobs": config.ongoing_jobs},
            "initial_backoff_s": 0.005,
            "backoff_multiplier": 2,
            "max_backoff_s": 0.02,
        },
    )
    root = serve.deployment(name="Root")(Root).options(ray_actor_options={"num_cpus": 0})
    return root.bind(replicas.bind(config))


def _how_many(config: CheckpointConfig) -> dict[str, Any]:
    scaling = config.autoscaling
    if scaling is None:
        return {"num_replicas": config.replicas or 1}
    return {
        "autoscaling_config": {
            "min_replicas": scaling.min,
            "max_replicas": scaling.max,
            "target_ongoing_requests": scaling.target_ongoing_jobs,
            "upscale_delay_s": scaling.upscale_delay_seconds,
            "downscale_delay_s": scaling.downscale_delay_seconds,
            "look_back_period_s": max(15.0, scaling.upscale_delay_seconds),
        }
    }


def _resources(config: CheckpointConfig) -> dict[str, Any]:
    resources: dict[str, Any] = {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus}
    if config.accelerator_type:
        resources["accelerator_type"] = config.accelerator_type
    if config.label_selector:
        resources["label_selector"] = dict(config.label_selector)
    return resources
