"""Xinference with its diffusers engine, in an environment of its own: `make xinference` sets that up.

It has `/sdapi/v1/txt2img` itself, where it draws one request after the other. It lacks DDIM, but has the
sampler of the model's folder, so that is DDIM here. A folder has one spacing of timesteps for all samplers:
that of Euler, so its DDIM takes other timesteps, as many. Pictures come as JPEG. By all other samplers they
are those of the lock, made JPEG: to the pixel by Euler, Euler a and Heun, at 50 dB by the DPM++ ones.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import httpx2

from benchmarks.baselines.pipeline import SCHEDULERS, Pipeline
from benchmarks.served import Served

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = ROOT / ".venv-xinference"
REQUIREMENTS = Path(__file__).with_suffix(".txt")
MODEL = "bench"
READY = f"/v1/models/{MODEL}"
START_SECONDS = 900
"""Half a minute on two idle cores, most of it imports; several beside other work."""


def installed() -> bool:
    return (ENVIRONMENT / ".ready").exists()


def version() -> str:
    """With those of what it has of its own beside the other systems'."""
    pins = dict(line.split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line)
    own = " and ".join(f"{name} {pins[name]}" for name in ("diffusers", "transformers"))
    return f"{pins['xinference']} with its own {own}"


def translated(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """A request of ours in its words."""
    sampler = body["sampler_name"]
    return {**body, "model": MODEL, "sampler_name": "default" if sampler == "DDIM" else sampler}


def serve(served: Served, port: int) -> None:
    """One checkpoint, without LoRAs, until SIGTERM, which is passed on."""
    (checkpoint,) = served.checkpoints
    if not installed():
        sys.exit("Xinference is not installed: make xinference")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory() as folder:
        export(checkpoint, Path(folder, "model"))
        command = [str(ENVIRONMENT / "bin/python"), str(ENVIRONMENT / "bin/xinference-local")]
        command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
        server = subprocess.Popen(command, env=environment(Path(folder), served.threads))
        try:
            launch(f"http://127.0.0.1:{port}", Path(folder, "model"), server)
            server.wait()
        finally:
            server.terminate()
            server.wait()


def export(checkpoint: Path, folder: Path) -> None:
    """The checkpoint as a diffusers folder, with DDIM's scheduler."""
    scheduler = diffusers.DDIMScheduler.from_config(
        SCHEDULERS["Euler"]().config, steps_offset=1, clip_sample=False, set_alpha_to_one=False
    )
    Pipeline(checkpoint, threads=1).save(folder, scheduler)


def environment(folder: Path, threads: int) -> Mapping[str, str]:
    """Everything that it writes goes to `folder`, and nothing is taken from a hub."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {
        **inherited,
        "OMP_NUM_THREADS": str(threads),
        "TMPDIR": str(folder),
        "XINFERENCE_HOME": str(folder / "home"),
        "XINFERENCE_AUTH_ADVANCED": "0",
        "XINFERENCE_ENABLE_VIRTUAL_ENV": "0",
        "XINFERENCE_SUBPOOL_LAUNCH_TIMEOUT": str(START_SECONDS),
        "XINFERENCE_DISABLE_HEALTH_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
    }


def launch(url: str, folder: Path, server: "subprocess.Popen[bytes]") -> None:
    """Wait for the server, and have it load the folder as its Stable Diffusion 1.5 in float32: its default
    is float16, which a CPU is many times slower with."""
    while not answers(f"{url}/v1/models"):
        if server.poll() is not None:
            sys.exit("Xinference ended while it started")
        time.sleep(0.5)
    model = {
        "model_uid": MODEL,
        "model_name": "stable-diffusion-v1.5",
        "model_type": "image",
        "model_path": str(folder),
        "torch_dtype": "float32",
    }
    httpx2.post(f"{url}/v1/models", json=model, timeout=START_SECONDS).raise_for_status()


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=10).status_code == 200
    except httpx2.HTTPError:
        return False
