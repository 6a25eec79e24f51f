"""The service against its own OpenAPI document: what that allows and what it does not is sent to every route.

Each route gets the document's examples, every field's boundaries, and FUZZ_EXAMPLES requests made at random:
few in a plain test run, many in `make fuzz-api`.
"""

import asyncio
import hashlib
import inspect
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis import Case, CheckContext, Response
from schemathesis.checks import ignored_auth, negative_data_rejection, positive_data_acceptance

from engine.protocol import EmbeddingFile, LoraFile, UpscalerFile, VaeFile
from ingress.app import build_app
from ingress.errors import ANSWERS
from ingress.settings import Key, Settings, Style
from tests.ingress.bodies import willing_backend
from tests.ingress.test_errors import LEAKS

LONG = "FUZZ_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "3"))
AT_LEAST = 2000
"""Requests in all: most of them are about the boundaries of txt2img's and img2img's fields."""

KEY = "correct-horse"

PICTURES = re.compile(r'"images":\["[^\]]*"\]')
"""Base64, in which anything may stand."""


def app() -> FastAPI:
    """With something in every list."""
    backend = willing_backend()
    backend.lora_files = [
        LoraFile(name="ink", alias="Ink", filename="sub/ink.safetensors", metadata={"ss_epoch": "3"})
    ]
    backend.embedding_files = [
        EmbeddingFile(name="good", width=768, vectors=2, usable=True),
        EmbeddingFile(name="other", width=1024, vectors=1, usable=False),
    ]
    backend.upscaler_files = [
        UpscalerFile(name="R-ESRGAN 4x+", filename="RealESRGAN_x4plus.safetensors", scale=4)
    ]
    backend.vae_files = [VaeFile(name="clear.safetensors", filename="clear.safetensors")]
    key = Key(id="fuzz", sha256=hashlib.sha256(KEY.encode()).hexdigest())
    styles = (Style(name="oil", prompt="{prompt}, oil on canvas"), Style(name="---"))
    return build_app(backend, Settings(keys=(key,), styles=styles))


def our_classes() -> re.Pattern[str]:
    """Names in CamelCase of classes of ours, but for those that the wire has as kinds of errors."""
    wire = {answer.error for answer in ANSWERS.values()}
    names = {
        name
        for module in list(sys.modules.values())
        if module.__name__.partition(".")[0] in ("ingress", "engine")
        for name, _ in inspect.getmembers(module, inspect.isclass)
        if re.search("[a-z][A-Z]", name) and name not in wire
    }
    assert {"Txt2ImgRequest", "RequestContext", "NotFinite"} <= names
    return re.compile(r"\b(" + "|".join(sorted(names)) + r")\b|<class|object at|\b(ingress|engine)\.\w")


OUR_CLASSES = our_classes()


def no_internals(context: CheckContext, response: Response, case: Case[Any]) -> None:
    """Nothing of the machine and of our code, unless the client has said it first."""
    said = str((case.path_parameters, case.query, case.headers, case.body))
    told = PICTURES.sub("", response.text)
    for pattern in (LEAKS, OUR_CLASSES):
        for found in pattern.finditer(told):
            assert found[0] in said, f"told {found[0]!r}"


APP = app()
schema = schemathesis.openapi.from_asgi("/openapi.json", APP, headers={"authorization": f"Bearer {KEY}"})


@pytest.fixture(scope="module", autouse=True)
def _closed_at_the_end() -> Iterator[None]:
    """Each request is in an event loop of its own, and none of them runs the application's lifespan."""
    yield
    asyncio.run(APP.state.service.database.close())


@pytest.fixture(scope="module")
def tried() -> Iterator[Counter[str]]:
    """How many requests each route got. Together they are as many as they are said to be."""
    counter: Counter[str] = Counter()
    yield counter
    if len(counter) == len(list(schema.get_all_operations())):  # else some were left out by name
        assert counter.total() >= AT_LEAST, counter


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_documented(case: Case[Any], tried: Counter[str]) -> None:
    """No server error, no undocumented status, type, header or body, and nothing internal.

    Three of schemathesis' checks are left out. Clients send "20" for 20 and null for nothing, which the
    document does not say; nor does it have the operator's limits, and what this version does not do; and a
    wrong x-api-key beside a valid Bearer key is admitted. `test_auth.py` has that.
    """
    tried[case.operation.label] += 1
    case.call_and_validate(
        headers={"authorization": f"Bearer {KEY}"},
        additional_checks=[no_internals],
        excluded_checks=[negative_data_rejection, positive_data_acceptance, ignored_auth],
    )
