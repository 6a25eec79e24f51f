"""What an operator may decide about the HTTP side. Plain values: nothing here opens a file or a socket."""

import re
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretBytes, model_validator

from engine.protocol import MAX_PROMPT_CHARS

CompatVersion = Literal["v1.7.0", "v1.10.1"]
"""The AUTOMATIC1111 version whose answers ours are equal to. Requests of every version are accepted."""

KeyScope = Literal["read", "generate", "operate"]
"""What a key may be for: looking at lists, progress and own results; whatever draws, stops drawing or sets
options; metrics, and what replicas load."""

KEY_SCOPES: tuple[KeyScope, ...] = get_args(KeyScope)


class Key(BaseModel):
    """One API key. Only its digest is ever configured: `printf %s "$KEY" | sha256sum`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(min_length=1, max_length=64)]
    """Names the key where the key itself must not appear."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
    """SHA-256 of the key's UTF-8 bytes, 64 hexadecimal digits."""
    scopes: frozenset[KeyScope] = frozenset(KEY_SCOPES)


class Style(BaseModel):
    """A piece of a prompt that requests may name. None in both texts divides the list of styles."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    prompt: str | None = None
    """With `{prompt}` in it, what stands around the request's prompt; else what is added behind it."""
    negative_prompt: str | None = None


class Limits(BaseModel):
    """What one request may ask for. Beyond it the answer is 422, for `max_body_bytes` 413."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: Annotated[int, Field(ge=1024)] = 24 * 1024 * 1024
    min_side: Annotated[int, Field(ge=8)] = 64
    """Smallest width and height, pixels."""
    max_side: Annotated[int, Field(ge=8)] = 2048
    """Largest width and height, pixels."""
    max_pixels: Annotated[int, Field(ge=64)] = 2048 * 2048
    """Largest width × height."""
    max_image_pixels: Annotated[int, Field(ge=64)] = 8192 * 8192
    """Largest picture that may be sent."""
    max_upscaled_pixels: Annotated[int, Field(ge=64)] = 4096 * 4096
    """Largest picture that extra-… may make. Those of a batch have together no more pixels than `max_images`
    of `max_pixels`."""
    max_steps: Annotated[int, Field(ge=1)] = 150
    max_images: Annotated[int, Field(ge=1)] = 16
    """Most images of one request: batch_size × n_iter."""
    max_cfg_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 30.0
    max_prompt_chars: Annotated[int, Field(ge=1, le=MAX_PROMPT_CHARS)] = MAX_PROMPT_CHARS
    """Of the prompt, and again of the negative prompt, each with its styles."""
    deadline_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    """A request whose images are not all done by then is answered with 504, and its jobs are aborted."""


class OrderSettings(BaseModel):
    """How orders of `/v1/jobs` are run and kept. Those waiting or running are open."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_open: Annotated[int, Field(ge=1)] = 1000
    """Of all keys together; 429 beyond it."""
    max_open_per_key: Annotated[int, Field(ge=1)] = 100
    """429 beyond it."""
    max_running: Annotated[int, Field(ge=1)] = 16
    """How many a gateway runs at a time."""
    lease_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 15.0
    """An order whose gateway has not been heard of for so long goes to another one."""
    max_losses: Annotated[int, Field(ge=1)] = 4
    """An order that this many gateways died of, or with, fails."""
    retry_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3600.0
    """How long after it was accepted an order is tried again that found its checkpoint absent or full, or
    was not done within `deadline_seconds`."""
    keep_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 86400.0
    """How long pictures are kept from an order's end. What became of it is told for as long again."""


_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s*?#@A-Z]+")
_NO_ORIGIN_OF_ANYBODY = "https://nobody.invalid"


def _checked_origins(origins: tuple[str, ...] | str) -> tuple[str, ...] | str:
    if isinstance(origins, str):
        try:
            pattern = re.compile(origins)
        except re.error as error:
            raise ValueError(f"{origins!r} is no regular expression: {error}") from None
        if pattern.fullmatch(_NO_ORIGIN_OF_ANYBODY):
            raise ValueError(f'{origins!r} matches every origin; ["*"] allows all, without credentials')
        return origins
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is no origin: wants https://host or https://host:port, or *")
    return origins


CorsOrigins = Annotated[tuple[str, ...] | str, AfterValidator(_checked_origins)]
"""Web pages of which origins may call: a list of them, or a regular expression that a whole origin matches.
`["*"]` are all, without credentials of the browser; none unless given."""


class Settings(BaseModel):
    """The whole HTTP side. With `auth: keys` every route but the root and `/health/*` needs a key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[Key, ...] = ()
    auth: Literal["keys", "off"] = "keys"
    """`off` opens every route to everybody who reaches the port."""
    compat_version: CompatVersion = "v1.7.0"
    clip_skip: Annotated[int, Field(ge=1, le=12)] = 1
    """Option CLIP_stop_at_last_layers, for requests that do not override it."""
    limits: Limits = Limits()
    database: str = "sqlite://"
    """As SQLAlchemy writes it, of SQLite or PostgreSQL. The default is in memory, gone with the process."""
    answers_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 24 * 3600.0
    """How long a request that is sent again with its Idempotency-Key gets the answer of the first."""
    answers_mb: Annotated[int, Field(ge=1)] = 1024
    """MiB of such answers that are kept; beyond it the oldest go."""
    results: str = "memory://results"
    """The folder of orders' pictures, or `s3://bucket/prefix`: this service's alone, as what it does not know
    there is deleted. All gateways share it. The default is in memory, gone with the process."""
    orders: OrderSettings = OrderSettings()
    webhook_secret: SecretBytes | None = None
    """What webhooks are signed with. Without it there are none."""
    webhook_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Where webhooks may go besides public addresses."""
    styles: tuple[Style, ...] = ()
    cors_origins: CorsOrigins = ()
    save_dir: str | None = None
    """Where requests with `save_images` have their pictures saved: a folder, or an address of fsspec's."""

    @model_validator(mode="after")
    def _keys_where_needed(self) -> Self:
        if self.auth == "keys" and not self.keys:
            raise ValueError("keys: at least one is needed, unless auth is off")
        ids = [key.id for key in self.keys]
        if len(set(ids)) < len(ids):
            raise ValueError("keys: every id must be given once only")
        return self
