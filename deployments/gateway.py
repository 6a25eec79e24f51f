"""The deployment that answers HTTP: ingress' app, built in the replica, over a backend of Serve handles."""

import asyncio
import logging
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError
from ray import serve
from ray.exceptions import TaskCancelledError
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.access import settings_of
from deployments.backend import HandleBackend, broadcast
from deployments.board.remote import RayBoard
from deployments.config import DIFFUSION, GatewayConfig, Offer
from deployments.metrics import GatewayMetrics
from deployments.watch import Watch
from ingress.app import build_app

logger = logging.getLogger("ray.serve")


class Gateway:
    """Raises ValueError, naming the key, for a configuration it must not start with."""

    def __init__(self, config: GatewayConfig) -> None:
        context = serve.get_replica_context()
        self._settings = settings_of(config, bind_host=_bind_host())
        self._metrics = GatewayMetrics(context.replica_id.unique_id)
        watch = Watch(serve.status, _sha256_of, restart_seconds=config.restart_seconds)
        self._backend = HandleBackend(config, context.app_name, _handle, watch, self._metrics, RayBoard())
        loop = asyncio.get_running_loop()
        self._running = (loop.create_task(watch.run()), loop.create_task(self._backend.report()))
        self._configured = False

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = build_app(self._backend, self._settings, self._metrics.observe_request)
        app.add_middleware(Departures)
        return app

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """A wrong first `user_config` ends the start. A wrong later one is logged and left: raising would
        end a replica that works."""
        try:
            self._backend.offer(Offer.model_validate(user_config))
        except ValidationError as error:
            if not self._configured:
                raise ValueError(f"user_config: {error}") from None
            logger.error("user_config is wrong, and the last one stays in use: %s", error)
        self._configured = True

    def metrics_text(self) -> str:
        return self._metrics.text()


class Departures:
    """ASGI middleware: a client that has left is `http.disconnect`, also where Serve's `receive` raises."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_or_disconnect() -> Message:
            try:
                return await receive()
            except TaskCancelledError:
                return {"type": "http.disconnect"}

        await self._app(scope, receive_or_disconnect, send)


def _bind_host() -> str:
    client = _get_global_client()
    assert client is not None, "a replica always has a controller"
    return str(client.http_config.host)


def _handle(deployment: str, application: str) -> DeploymentHandle[Any]:
    return serve.get_deployment_handle(deployment, application, _check_exists=False, _record_telemetry=False)


async def _sha256_of(application: str) -> str:
    replicas = await broadcast(_handle(DIFFUSION, application), "describe")
    return replicas[0].sha256 if replicas else ""
