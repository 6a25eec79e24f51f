"""Who may call, and what is signed: the files of keys and secrets, and the refusal to stand open."""

import base64
import binascii
import hashlib
import ipaddress
import re
from itertools import takewhile
from pathlib import Path

from pydantic import SecretBytes

from deployments.config import GatewayConfig
from deployments.styles import read_styles
from ingress.settings import KEY_SCOPES, Key, KeyScope, Settings

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys in a file with one `id secret` or `id sha256:<64 hex digits>` a line; `#` begins a comment.

    A third word limits what the key is for: `read,generate`, of `KEY_SCOPES`. Without it the key is for all.
    Raises ValueError, which names the line and never quotes it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"keys_file: cannot read {path}: {error.strerror}") from None
    keys = tuple(
        _parse(words, f"keys_file: {path} line {number}")
        for number, line in enumerate(lines, start=1)
        if (words := list(takewhile(lambda word: not word.startswith("#"), line.split())))
    )
    if not keys:
        raise ValueError(f"keys_file: no key in {path}")
    if len({key.id for key in keys}) < len(keys):
        raise ValueError(f"keys_file: the same id twice in {path}")
    return keys


def _parse(words: list[str], where: str) -> Key:
    if len(words) not in (2, 3):
        raise ValueError(
            f"{where}: wants `id secret` or `id sha256:<64 hex digits>`, and at most scopes behind it"
        )
    name, secret, *limits = words
    scopes = _scopes(limits[0], where) if limits else frozenset(KEY_SCOPES)
    if digest := _DIGEST.fullmatch(secret):
        return Key(id=name, sha256=digest[1], scopes=scopes)
    if secret.startswith("sha256:"):
        raise ValueError(f"{where}: sha256: wants 64 lowercase hex digits")
    return Key(id=name, sha256=hashlib.sha256(secret.encode()).hexdigest(), scopes=scopes)


def _scopes(word: str, where: str) -> frozenset[KeyScope]:
    given = set(word.split(","))
    if not given <= set(KEY_SCOPES):
        raise ValueError(f"{where}: scopes: wants one or more of {','.join(KEY_SCOPES)}, with commas alone")
    return frozenset(scope for scope in KEY_SCOPES if scope in given)


def read_webhook_secret(path: Path) -> SecretBytes:
    """The secret in a file that has nothing else: `whsec_` and the base64 of 24 to 64 bytes.

    Raises ValueError, which never quotes it.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"webhook_secret_file: cannot read {path}: {error.strerror}") from None
    try:
        secret = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not (text.startswith("whsec_") and 24 <= len(secret) <= 64):
        raise ValueError(f"webhook_secret_file: {path} wants `whsec_` and the base64 of 24 to 64 bytes")
    return SecretBytes(secret)


def settings_of(config: GatewayConfig, *, bind_host: str) -> Settings:
    """What the HTTP side is to know. `bind_host` is where Serve listens.

    Raises ValueError for keys that cannot be read, and for a service that anybody on the network could use.
    """
    if config.auth == "off" and not _is_loopback(bind_host):
        raise ValueError(
            f"auth: off is for a loopback address, and http_options says host: {bind_host}; "
            "give keys_file, or host: 127.0.0.1"
        )
    return Settings(
        keys=read_keys(config.keys_file) if config.keys_file else (),
        auth=config.auth,
        compat_version=config.compat_version,
        clip_skip=config.clip_skip,
        limits=config.limits,
        database=config.database,
        answers_seconds=config.answers_seconds,
        answers_mb=config.answers_mb,
        results=config.results,
        orders=config.orders,
        webhook_secret=read_webhook_secret(config.webhook_secret_file)
        if config.webhook_secret_file
        else None,
        webhook_networks=config.webhook_networks,
        styles=read_styles(config.styles_file) if config.styles_file else (),
        cors_origins=config.cors_origins,
        save_dir=config.save_dir,
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
