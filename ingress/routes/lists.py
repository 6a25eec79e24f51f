"""What there is to name in requests, and a second look at it."""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType, NoneType
from typing import Any

from fastapi import FastAPI, Response

from engine.protocol import IMAGE_UPSCALERS, LATENT_UPSCALERS
from ingress import checkpoints, scripts
from ingress.deps import ServiceDep
from ingress.schemas import samplers
from ingress.schemas.lists import (
    EmbeddingItem,
    Embeddings,
    LatentUpscaleMode,
    LoraItem,
    RealEsrganModel,
    SamplerItem,
    SchedulerItem,
    ScriptInfo,
    Scripts,
    SdModel,
    UpscalerItem,
    VaeItem,
)
from ingress.scopes import OPERATE, READ
from ingress.settings import Style

EMPTY: Mapping[str, str] = MappingProxyType(
    {
        "hypernetworks": "There are none: prompts may name LoRAs and embeddings.",
        "face-restorers": "There are none.",
        "extensions": "There are none, and none can be installed.",
    }
)
"""Lists that clients ask for, of what this version does not have."""

CHECKPOINTS_STAY = "checkpoints are not looked for: the service's configuration lists them"


async def sd_models(service: ServiceDep) -> list[dict[str, Any]]:
    """The checkpoints that a request may name: the default first, the others by name."""
    offered = service.backend.checkpoints()
    others = sorted(offered[1:], key=lambda checkpoint: checkpoint.name.casefold())
    return [checkpoints.listing(checkpoint) for checkpoint in (*offered[:1], *others)]


async def loras(service: ServiceDep) -> list[LoraItem]:
    """The LoRAs that prompts may name."""
    return [
        LoraItem(name=file.name, alias=file.alias, path=file.filename, metadata=dict(file.metadata))
        for file in await service.backend.loras()
    ]


async def embeddings(service: ServiceDep) -> Embeddings:
    """The textual-inversion embeddings that prompts may name."""
    listed = Embeddings(loaded={}, skipped={})
    for file in await service.backend.embeddings():
        items = listed.loaded if file.usable else listed.skipped
        items[file.name] = EmbeddingItem(shape=file.width, vectors=file.vectors)
    return listed


async def sd_vae(service: ServiceDep) -> list[VaeItem]:
    """The VAEs that the option `sd_vae` may name."""
    return [VaeItem(model_name=file.name, filename=file.filename) for file in await service.backend.vaes()]


async def upscalers(service: ServiceDep) -> list[UpscalerItem]:
    """What enlarges pictures, networks last."""
    return [UpscalerItem(name=name) for name in IMAGE_UPSCALERS] + [
        UpscalerItem(
            name=file.name,
            model_name=PurePosixPath(file.filename).stem,
            model_path=file.filename,
            scale=file.scale,
        )
        for file in await service.backend.upscalers()
    ]


async def latent_upscale_modes() -> list[LatentUpscaleMode]:
    """What enlarges latents between the passes of a hires fix."""
    return [LatentUpscaleMode(name=name) for name in LATENT_UPSCALERS]


async def realesrgan_models(service: ServiceDep) -> list[RealEsrganModel]:
    """Those of Real-ESRGAN's published networks that there are."""
    return [
        RealEsrganModel(name=file.name, path=file.filename, scale=file.scale)
        for file in await service.backend.upscalers()
        if file.name.startswith("R-ESRGAN ")
    ]


async def prompt_styles(service: ServiceDep) -> tuple[Style, ...]:
    """The styles that a request may name."""
    return service.settings.styles


async def list_samplers(service: ServiceDep) -> list[dict[str, Any]]:
    """The samplers that there are. The names of every A1111 version are understood."""
    return samplers.list_samplers(service.settings.compat_version)


async def list_schedulers() -> list[dict[str, Any]]:
    """The noise schedules that there are."""
    return samplers.list_schedulers()


async def list_scripts(service: ServiceDep) -> Scripts:
    """The scripts that there are. What they do is asked for by fields of the request."""
    return Scripts(**{tab: scripts.listed(tab, service.settings.compat_version) for tab in scripts.TABS})


async def script_info(service: ServiceDep) -> list[ScriptInfo]:
    """The scripts of `GET /sdapi/v1/scripts`: they take no args."""
    return [
        ScriptInfo(name=name, is_alwayson=True, is_img2img=tab == "img2img", args=[])
        for tab in scripts.TABS
        for name in scripts.listed(tab, service.settings.compat_version)
    ]


async def refresh_loras(service: ServiceDep) -> None:
    """Look for new LoRA files. They are also found within seconds of being asked for."""
    await service.backend.refresh("loras")


async def refresh_embeddings(service: ServiceDep) -> None:
    """Look for new embeddings. Requests that are being drawn keep those they began with."""
    await service.backend.refresh("embeddings")


async def refresh_vae(service: ServiceDep) -> None:
    """Look for new VAE files. They are also found within seconds of being asked for."""
    await service.backend.refresh("vaes")


async def refresh_checkpoints(response: Response) -> None:
    """Accepted, without effect: the service's configuration says which checkpoints there are."""
    response.headers["X-Warnings"] = json.dumps([CHECKPOINTS_STAY])


async def nothing() -> list[Any]:
    return []


def add_routes(app: FastAPI, prefix: str) -> None:
    app.get(f"{prefix}/sd-models", response_model=list[SdModel], dependencies=[READ])(sd_models)
    app.get(f"{prefix}/loras", response_model=list[LoraItem], dependencies=[READ])(loras)
    app.get(f"{prefix}/embeddings", response_model=Embeddings, dependencies=[READ])(embeddings)
    app.get(f"{prefix}/sd-vae", response_model=list[VaeItem], dependencies=[READ])(sd_vae)
    app.get(f"{prefix}/upscalers", response_model=list[UpscalerItem], dependencies=[READ])(upscalers)
    app.get(f"{prefix}/latent-upscale-modes", response_model=list[LatentUpscaleMode], dependencies=[READ])(
        latent_upscale_modes
    )
    app.get(f"{prefix}/realesrgan-models", response_model=list[RealEsrganModel], dependencies=[READ])(
        realesrgan_models
    )
    app.get(f"{prefix}/prompt-styles", response_model=list[Style], dependencies=[READ])(prompt_styles)
    app.get(f"{prefix}/samplers", response_model=list[SamplerItem], dependencies=[READ])(list_samplers)
    app.get(f"{prefix}/schedulers", response_model=list[SchedulerItem], dependencies=[READ])(list_schedulers)
    app.get(f"{prefix}/scripts", response_model=Scripts, dependencies=[READ])(list_scripts)
    app.get(f"{prefix}/script-info", response_model=list[ScriptInfo], dependencies=[READ])(script_info)
    for name, description in EMPTY.items():
        app.get(f"{prefix}/{name}", description=description, dependencies=[READ])(nothing)
    app.post(f"{prefix}/refresh-loras", response_model=NoneType, dependencies=[OPERATE])(refresh_loras)
    app.post(f"{prefix}/refresh-embeddings", response_model=NoneType, dependencies=[OPERATE])(
        refresh_embeddings
    )
    app.post(f"{prefix}/refresh-vae", response_model=NoneType, dependencies=[OPERATE])(refresh_vae)
    app.post(f"{prefix}/refresh-checkpoints", response_model=NoneType, dependencies=[OPERATE])(
        refresh_checkpoints
    )
