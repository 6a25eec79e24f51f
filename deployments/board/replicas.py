"""What replicas report of their jobs, as long as they do. Pure policy, without Ray."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from engine.protocol import JobProgress


@dataclass(slots=True)
class _Replica:
    """`rate`: evaluations a second while it has work, 0 if not measured. `running` of its jobs have begun."""

    checkpoint: str
    rate: float
    running: int
    jobs: dict[str, JobProgress]
    until: float

    @property
    def seconds(self) -> float:
        """What an evaluation takes, for one of its jobs."""
        return max(1, self.running) / self.rate


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of the replicas of one checkpoint: evaluations a second, and the seconds one takes for a job."""

    rate: float
    seconds: float


class Replicas:
    """A job that its replica reports no more is done, and its picture on the way: what was reported last
    counts until the job is forgotten."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}
        self._holders: dict[str, str] = {}
        self._busy: set[str] = set()

    @property
    def busy(self) -> int:
        """How many have jobs."""
        return len(self._busy)

    def report(
        self,
        name: str,
        checkpoint: str,
        jobs: Collection[JobProgress],
        *,
        rate: float,
        open_jobs: Collection[str],
        until: float,
    ) -> None:
        """All that a replica has to say, which counts `until` then. `open_jobs`: those of open orders."""
        known = self._replicas.get(name)
        held = {job.job_id: job for job in jobs}
        for job_id, job in known.jobs.items() if known else ():
            if job_id in held or self._holders.get(job_id) != name:
                continue
            if job_id in open_jobs:
                held[job_id] = job
            else:
                del self._holders[job_id]
        self._holders |= dict.fromkeys(held, name)
        running = sum(job.running for job in jobs)
        self._replicas[name] = _Replica(checkpoint, rate, running, held, until)
        (self._busy.add if jobs else self._busy.discard)(name)

    def job(self, job_id: str) -> JobProgress | None:
        """As last reported. None for a job that no replica has or had."""
        holder = self._holders.get(job_id)
        return self._replicas[holder].jobs[job_id] if holder is not None else None

    def seconds(self, job_id: str) -> float | None:
        """What an evaluation of this job takes. None if that is not known."""
        holder = self._replicas.get(self._holders.get(job_id, ""))
        return holder.seconds if holder and holder.rate else None

    def throughput(self, checkpoint: str) -> Throughput | None:
        """None if nothing was measured yet."""
        replicas = [each for each in self._replicas.values() if each.checkpoint == checkpoint and each.rate]
        if not replicas:
            return None
        seconds = sum(each.seconds for each in replicas) / len(replicas)
        return Throughput(sum(each.rate for each in replicas), seconds)

    def forget(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            holder = self._holders.pop(job_id, None)
            if holder is not None:
                del self._replicas[holder].jobs[job_id]

    def sweep(self, now: float) -> None:
        """Forget replicas that have fallen silent, with their jobs."""
        for name in [name for name, replica in self._replicas.items() if replica.until < now]:
            for job_id in self._replicas.pop(name).jobs:
                if self._holders.get(job_id) == name:
                    del self._holders[job_id]
            self._busy.discard(name)
