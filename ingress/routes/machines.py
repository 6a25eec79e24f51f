"""The machines: their memory, and what A1111's one process would be told about its own."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import psutil
from fastapi import FastAPI, Response

from engine.protocol import DeviceMemory, Usage
from ingress.deps import ServiceDep
from ingress.scopes import OPERATE, READ

FLAGS: Mapping[str, object] = MappingProxyType(
    {
        "api": True,
        "nowebui": True,
        "api_server_stop": False,
        "allow_code": False,
        "enable_insecure_extension_access": False,
        "disable_safe_unpickle": False,
    }
)
"""A1111's command line as this service would have it. Nothing of the real one: that may hold secrets."""

WEIGHTS_STAY = "the weights stay where they are: every checkpoint has replicas of its own"


async def memory(service: ServiceDep) -> dict[str, Any]:
    """Bytes: of the gateway's machine, and of the GPUs of all replicas together."""
    ram = psutil.virtual_memory()
    free, total = ram.available, ram.total
    replicas = await service.backend.memory()
    return {
        "ram": {"free": free, "used": total - free, "total": total},
        "cuda": _cuda(replicas) if replicas else {"error": "unavailable"},
    }


def _cuda(replicas: Sequence[DeviceMemory]) -> dict[str, Any]:
    """A GPU that several replicas share counts once."""
    devices = {replica.device: replica for replica in replicas}.values()
    free, total = sum(device.free for device in devices), sum(device.total for device in devices)
    return {
        "system": {"free": free, "used": total - free, "total": total},
        "active": _sums([replica.active for replica in replicas]),
        "allocated": _sums([replica.allocated for replica in replicas]),
        "reserved": _sums([replica.reserved for replica in replicas]),
        "inactive": _sums([replica.inactive for replica in replicas]),
        "events": {
            "retries": sum(replica.retries for replica in replicas),
            "oom": sum(replica.failures for replica in replicas),
        },
    }


def _sums(usages: Sequence[Usage]) -> dict[str, int]:
    return {"current": sum(usage.current for usage in usages), "peak": sum(usage.peak for usage in usages)}


async def cmd_flags() -> dict[str, object]:
    """Some of A1111's command-line flags, as they would be."""
    return dict(FLAGS)


async def keep_weights(response: Response) -> dict[str, Any]:
    """Accepted, without effect: every checkpoint has replicas of its own, which keep its weights."""
    response.headers["X-Warnings"] = json.dumps([WEIGHTS_STAY])
    return {}


def add_routes(app: FastAPI, prefix: str) -> None:
    app.get(f"{prefix}/memory", dependencies=[READ])(memory)
    app.get(f"{prefix}/cmd-flags", dependencies=[READ])(cmd_flags)
    app.post(f"{prefix}/unload-checkpoint", dependencies=[OPERATE])(keep_weights)
    app.post(f"{prefix}/reload-checkpoint", dependencies=[OPERATE])(keep_weights)
