"""The bodies of `/v1/jobs`. What is called an order elsewhere is a job on this wire."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ingress.schemas.sdapi import GenerationRequest, Img2ImgRequest, LenientModel, Text, Txt2ImgRequest
from ingress.store.orders import Kind, State

BODIES: Mapping[Kind, type[Txt2ImgRequest] | type[Img2ImgRequest]] = MappingProxyType(
    {"txt2img": Txt2ImgRequest, "img2img": Img2ImgRequest}
)


class JobFields(LenientModel):
    """What the body of a job has besides that of `/sdapi/v1/txt2img` or `img2img`."""

    kind: Kind | None = None
    """img2img unless given if the body has `init_images`, else txt2img."""
    webhook: Text | None = None
    """Where to post what `GET /v1/jobs/{id}` says, once the job has ended. http or https."""


_REFERENCES = [{"$ref": f"#/components/schemas/{body.__name__}"} for body in BODIES.values()]
_SCHEMA = {"allOf": [JobFields.model_json_schema(), {"anyOf": _REFERENCES}]}

BODY_IN_DOCUMENT: Mapping[str, Any] = MappingProxyType(
    {"requestBody": {"content": {"application/json": {"schema": _SCHEMA}}}}
)
"""The body for the OpenAPI document: which of the two it is, pydantic could not tell without renaming fields
in its errors."""


def read(body: object) -> tuple[Kind, str | None, GenerationRequest]:
    """Kind, webhook and what is to be drawn. Raises the errors of any other body."""
    try:
        fields = JobFields.model_validate(body)
        assert isinstance(body, dict)
        kind = fields.kind or ("img2img" if body.get("init_images") else "txt2img")
        return kind, fields.webhook, BODIES[kind].model_validate(body)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(found) from None


class JobAccepted(BaseModel):
    """Links are paths: `self`, and `events` to follow it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    state: State
    created: str
    """ISO 8601, UTC, as all times here."""
    place: int | None
    """How soon it is its turn: 1 is next. Null if it does not wait."""
    links: dict[str, str]


class JobSummary(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    kind: Kind
    state: State
    created: str
    started: str | None
    finished: str | None
    links: dict[str, str]


class JobPictures(BaseModel):
    """What `/sdapi/v1/txt2img` would have answered, with links in the place of pictures."""

    images: list[str]
    parameters: dict[str, Any]
    info: str
    warnings: list[str]


class JobError(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    message: str
    type: str
    param: str | None
    """The field that is wrong."""
    code: str


class JobStatus(JobSummary):
    place: int | None
    """How soon it is its turn: 1 is next. Null if it does not wait."""
    progress: Annotated[float, Field(ge=0, le=1)]
    eta: float | None
    """Seconds, if there is an estimate."""
    error: JobError | None
    """Why it failed, as an answer would have said it."""
    result: JobPictures | None
    expires: str | None
    """When the pictures go. What became of the job is told for as long again."""


class JobList(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    jobs: list[JobSummary]
    """The newest first."""
    next: str | None
    """The path of the next page."""
