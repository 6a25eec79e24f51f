"""AUTOMATIC1111's API."""

from pathlib import PurePosixPath
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request
from pydantic_core import to_json
from starlette.responses import Response

from engine.protocol import IMAGE_UPSCALERS, LATENT_UPSCALERS
from ingress import checkpoints, generate
from ingress.deps import Service, ServiceDep
from ingress.generate import Asked
from ingress.schemas import samplers
from ingress.schemas.examples import TXT2IMG_EXAMPLES
from ingress.schemas.sdapi import (
    EmbeddingItem,
    Embeddings,
    ErrorResponse,
    GenerationRequest,
    GenerationResponse,
    Img2ImgRequest,
    LatentUpscaleMode,
    LoraItem,
    RealEsrganModel,
    SamplerItem,
    SchedulerItem,
    Scripts,
    SdModel,
    Txt2ImgRequest,
    UpscalerItem,
    VaeItem,
)
from ingress.settings import Style
from ingress.store import options as stored_options


async def txt2img(
    body: Annotated[Txt2ImgRequest, Body(openapi_examples=TXT2IMG_EXAMPLES)],
    request: Request,
    service: ServiceDep,
) -> Response:
    """Draw pictures from a prompt. Unknown keys are ignored, null means not given."""
    return await _generate(body, request, service)


async def img2img(body: Img2ImgRequest, request: Request, service: ServiceDep) -> Response:
    """Draw pictures from a prompt and a picture, all of it or the part that a mask covers."""
    return await _generate(body, request, service)


async def _generate(body: GenerationRequest, request: Request, service: Service) -> Response:
    asked = Asked(
        id=body.force_task_id or request.state.request_id,
        key=request.state.key,
        options=await stored_options.read(service.database, request.state.key),
        random=getattr(request.state, "random", service.random),
        now=getattr(request.state, "now", None) or service.now(),
    )
    generation = generate.resolved(body, asked, service)
    options = generate.options_after(generation, asked, service)
    request.state.model = generation.checkpoint.name
    drawn = await generate.drawn(generation, asked, service, request.receive)
    await stored_options.save(service.database, asked.key, asked.options, options)
    # Sooner done than by the standard library, with half a megabyte of base64, while all others wait.
    answer = to_json(drawn.content)
    return Response(answer, headers={**drawn.headers, "X-Task-Id": asked.id}, media_type="application/json")


async def sd_models(service: ServiceDep) -> list[dict[str, Any]]:
    """The checkpoints that a request may name, the default first."""
    return [checkpoints.listing(checkpoint) for checkpoint in service.backend.checkpoints()]


async def loras(service: ServiceDep) -> list[LoraItem]:
    """The LoRAs that prompts may name."""
    return [
        LoraItem(name=file.name, alias=file.alias, path=file.filename, metadata=dict(file.metadata))
        for file in await service.backend.loras()
    ]


async def refresh_loras(service: ServiceDep) -> None:
    """Look for new LoRA files. They are also found within seconds of being asked for."""
    await service.backend.refresh_loras()


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


async def scripts() -> Scripts:
    """The scripts that there are: none yet."""
    return Scripts(txt2img=[], img2img=[])


def add_routes(app: FastAPI, prefix: str) -> None:
    for path, route in (("txt2img", txt2img), ("img2img", img2img)):
        app.post(
            f"{prefix}/{path}",
            response_model=GenerationResponse,
            responses={status: {"model": ErrorResponse} for status in (401, 404, 413, 422, 429, 503, 504)},
        )(route)
    app.get(f"{prefix}/sd-models", response_model=list[SdModel])(sd_models)
    app.get(f"{prefix}/loras", response_model=list[LoraItem])(loras)
    app.post(f"{prefix}/refresh-loras")(refresh_loras)
    app.get(f"{prefix}/embeddings", response_model=Embeddings)(embeddings)
    app.get(f"{prefix}/sd-vae", response_model=list[VaeItem])(sd_vae)
    app.get(f"{prefix}/upscalers", response_model=list[UpscalerItem])(upscalers)
    app.get(f"{prefix}/latent-upscale-modes", response_model=list[LatentUpscaleMode])(latent_upscale_modes)
    app.get(f"{prefix}/realesrgan-models", response_model=list[RealEsrganModel])(realesrgan_models)
    app.get(f"{prefix}/prompt-styles", response_model=list[Style])(prompt_styles)
    app.get(f"{prefix}/samplers", response_model=list[SamplerItem])(list_samplers)
    app.get(f"{prefix}/schedulers", response_model=list[SchedulerItem])(list_schedulers)
    app.get(f"{prefix}/scripts", response_model=Scripts)(scripts)
