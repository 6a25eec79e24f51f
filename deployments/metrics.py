"""The metrics of the service, all of them. Each process has a registry of its own; `/metrics` merges them.

Every sample says which `replica` it is from, and a checkpoint's also which `checkpoint`, so that the
merged text never has the same sample twice.
"""

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from engine.protocol import JobResult, StepStats

EVALUATE = "evaluate"

LONG = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0)
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class ReplicaMetrics:
    """What one replica of a checkpoint counts. Safe to call from any thread."""

    def __init__(self, checkpoint: str, replica: str, quality: str = "") -> None:
        """`quality`: what its pictures say they are drawn in, empty for exact."""
        self._registry = registry = _registry()
        self._of = (checkpoint, replica)
        own = ("checkpoint", "replica")
        Gauge(
            "atelier_quality",
            "1, with the class of quality that the replica draws in.",
            (*own, "quality"),
            registry=registry,
        ).labels(*self._of, quality or "exact").set(1)
        self._wait = Histogram(
            "atelier_job_wait_seconds",
            "Time of finished jobs in the replica before their first operation.",
            own,
            buckets=LONG,
            registry=registry,
        ).labels(*self._of)
        self._stages = Histogram(
            "atelier_stage_seconds",
            "Time of finished jobs in each stage.",
            (*own, "stage"),
            buckets=LONG,
            registry=registry,
        )
        self._batch_jobs = Histogram(
            "atelier_batch_jobs",
            "Jobs that shared one step.",
            (*own, "operation"),
            buckets=SIZES,
            registry=registry,
        )
        self._batch_rows = Histogram(
            "atelier_batch_rows",
            "Model rows of one step: a guided evaluation is two.",
            (*own, "operation"),
            buckets=SIZES,
            registry=registry,
        )
        self._steps = Histogram(
            "atelier_step_seconds",
            "Time of one step.",
            (*own, "operation"),
            buckets=SHORT,
            registry=registry,
        )
        self._evaluations = Counter(
            "atelier_evaluations",
            "Jobs that went through the denoiser once.",
            own,
            registry=registry,
        ).labels(*self._of)
        self._model_seconds = Counter(
            "atelier_model_seconds",
            "Time of all steps inside the models.",
            own,
            registry=registry,
        ).labels(*self._of)
        self._running = Gauge(
            "atelier_rows_running", "Jobs that have begun and are not done.", own, registry=registry
        ).labels(*self._of)
        self._waiting = Gauge(
            "atelier_rows_waiting", "Jobs in the replica that have not begun.", own, registry=registry
        ).labels(*self._of)

    def observe_step(self, stats: StepStats) -> None:
        of_step = (*self._of, stats.operation)
        self._batch_jobs.labels(*of_step).observe(stats.jobs)
        self._batch_rows.labels(*of_step).observe(stats.rows)
        self._steps.labels(*of_step).observe(stats.seconds)
        self._model_seconds.inc(stats.model_seconds)
        if stats.operation == EVALUATE:
            self._evaluations.inc(stats.jobs)

    def observe_job(self, result: JobResult) -> None:
        timings = result.timings
        self._wait.observe(timings.wait)
        for stage in ("encode", "denoise", "decode", "write"):
            self._stages.labels(*self._of, stage).observe(getattr(timings, stage))

    def text(self, *, running: int, waiting: int) -> str:
        self._running.set(running)
        self._waiting.set(waiting)
        return generate_latest(self._registry).decode()


class GatewayMetrics:
    """What one replica of the gateway counts."""

    def __init__(self, replica: str) -> None:
        self._registry = registry = _registry()
        self._replica = replica
        self._requests = Counter(
            "atelier_http_requests",
            "HTTP requests answered. `model` is a configured checkpoint or empty.",
            ("replica", "route", "model", "status"),
            registry=registry,
        )
        self._request_seconds = Histogram(
            "atelier_http_request_seconds",
            "Time from a request's arrival to the end of its answer.",
            ("replica", "route"),
            buckets=LONG,
            registry=registry,
        )
        self._routing = Histogram(
            "atelier_job_routing_seconds",
            "Time of finished jobs outside their replica: waiting for a place, retries, transport.",
            ("replica", "checkpoint"),
            buckets=SHORT,
            registry=registry,
        )
        self._retries = Counter(
            "atelier_job_retries",
            "Jobs sent again because their replica was lost.",
            ("replica", "checkpoint"),
            registry=registry,
        )

    def observe_request(self, *, route: str, model: str, status: int, seconds: float) -> None:
        self._requests.labels(self._replica, route, model, str(status)).inc()
        self._request_seconds.labels(self._replica, route).observe(seconds)

    def observe_job(self, checkpoint: str, seconds: float, result: JobResult) -> None:
        """`seconds`: from the gateway's decision to run the job to its result."""
        outside = max(0.0, seconds - result.timings.total)
        self._routing.labels(self._replica, checkpoint).observe(outside)

    def count_retry(self, checkpoint: str) -> None:
        self._retries.labels(self._replica, checkpoint).inc()

    def text(self) -> str:
        return generate_latest(self._registry).decode()


def _registry() -> CollectorRegistry:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    return CollectorRegistry()


def merge(expositions: Iterable[str]) -> str:
    """One valid exposition of several: each family once, with the samples of all."""
    families: dict[str, list[str]] = {}
    for exposition in expositions:
        family: list[str] = []
        known = False
        for line in exposition.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ")[2]
                known = name in families
                family = families.setdefault(name, [])
            if not (known and line.startswith("#")):
                family.append(line)
    return "".join(f"{line}\n" for family in families.values() for line in family)
