from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from deployments.board.board import (
    IDLE_SECONDS,
    JOBS_PER_SECOND,
    MOST_REMEMBERED,
    REMEMBERED_SECONDS,
    REPORTS_PER_SECOND,
    SHORTEST_SECONDS,
    WATCHED_SECONDS,
    Board,
    OrderReport,
    Question,
    Told,
)
from engine.protocol import JobProgress
from ingress.backend import Order, OrderProgress
from tests.deployments.board.fakes import Clock, job, order, report


@dataclass
class Service:
    """Gateways and replicas that report to one board: what they reported last, again when time passes."""

    board: Board
    clock: Clock
    gateways: dict[str, dict[str, Order]]
    replicas: dict[str, tuple[Sequence[JobProgress], float]]
    ended: set[str]
    opened_at: dict[str, float]

    def open(self, *orders: Order, gateway: str = "g") -> Told:
        for each in orders:
            self.opened_at[each.jobs[0]] = self.clock.now
            self.gateways.setdefault(gateway, {})[each.jobs[0]] = each
        return self.gateway_reports(gateway)

    def close(self, closed: Order, gateway: str = "g") -> Told:
        del self.gateways[gateway][closed.jobs[0]]
        return self.gateway_reports(gateway, closed)

    def gateway_reports(self, gateway: str = "g", *closed: Order) -> Told:
        def reports(orders: Sequence[Order]) -> list[OrderReport]:
            return [
                report(
                    each,
                    number=hash(each.jobs),
                    seconds=self.clock.now - self.opened_at[each.jobs[0]],
                    ended=self.ended & set(each.jobs),
                )
                for each in orders
            ]

        return self.board.report_orders(
            gateway, reports(list(self.gateways[gateway].values())), reports(closed)
        )

    def work(self, *jobs: JobProgress, replica: str = "r", rate: float = 0.0) -> Told:
        self.replicas[replica] = jobs, rate
        return self.board.report_jobs(replica, "demo", jobs, rate)

    def pass_time(self, seconds: float) -> None:
        """In which all that report go on."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + SHORTEST_SECONDS)
            for gateway in self.gateways:
                self.gateway_reports(gateway)
            for replica, (jobs, rate) in self.replicas.items():
                self.work(*jobs, replica=replica, rate=rate)

    def ask(self, id: str | None = None, *, key: str = "me", preview: bool = False) -> OrderProgress | None:
        [answer] = self.board.progress([Question(key, id, preview)])
        return answer

    def seen(self, id: str | None = None, *, key: str = "me") -> OrderProgress:
        answer = self.ask(id, key=key)
        assert answer is not None
        return answer


@pytest.fixture
def service() -> Service:
    clock = Clock()
    return Service(Board(clock), clock, {}, {}, set(), {})


def test_nothing_is_known_before_anything_is_reported(service: Service) -> None:
    assert service.ask() is None
    assert service.ask("a") is None
    assert service.board.pending("me") == []
    assert service.board.interrupt("me", None, False) == 0


def test_an_order_of_which_no_job_has_begun_is_queued(service: Service) -> None:
    service.open(order("a", jobs=2))
    service.work(job("me-a-0", running=False))
    seen = service.seen("a")
    assert (seen.state, seen.progress, seen.place, seen.places) == ("queued", 0.0, 1, 1)
    assert (seen.job_no, seen.job_count, seen.sampling_step, seen.sampling_steps) == (0, 2, 0, 20)
    assert service.board.pending("me") == ["a"]


def test_progress_counts_the_evaluations_of_all_jobs(service: Service) -> None:
    service.open(order("a", jobs=4, batch_size=2, steps=20))
    service.work(job("me-a-0", 20, 40), job("me-a-1", 40, 40), replica="r")
    service.work(job("me-a-2", 10, 40), job("me-a-3", 0, 0, running=False), replica="other")
    seen = service.seen("a")
    assert (seen.state, seen.place) == ("running", None)
    assert seen.progress == pytest.approx(0.01 + (0.5 + 1 + 0.25) / 4)
    # A1111's own sum comes to the same: job_no / job_count + sampling_step / (sampling_steps · job_count).
    assert (seen.job_no, seen.job_count, seen.sampling_step, seen.sampling_steps) == (0, 2, 17, 20)


def test_progress_goes_through_the_batches(service: Service) -> None:
    service.open(order("a", jobs=3, steps=10))
    service.ended = {"me-a-0", "me-a-1"}
    service.gateway_reports()
    service.work(job("me-a-2", 4, 10))
    seen = service.seen("a")
    assert (seen.job_no, seen.job_count, seen.sampling_step) == (2, 3, 4)
    service.ended.add("me-a-2")
    service.gateway_reports()
    seen = service.seen("a")
    assert (seen.job_no, seen.sampling_step, seen.progress) == (2, 10, 1.0)


def test_a_job_that_left_its_replica_is_not_waiting_again(service: Service) -> None:
    """Its picture is on the way to the gateway."""
    service.open(order("a"))
    service.work(job("me-a-0", 20, 20))
    service.work()
    assert service.seen("a").state == "running"
    assert service.seen("a").progress == 1.0


def test_a_job_whose_replica_fell_silent_waits_again(service: Service) -> None:
    service.open(order("a"))
    service.work(job("me-a-0", 10, 20))
    del service.replicas["r"]
    service.pass_time(10)
    assert service.seen("a").state == "queued"
    service.work(job("me-a-0", 5, 20), replica="another")
    assert service.seen("a").progress == pytest.approx(0.26)


def test_a_job_that_is_sent_again_counts_where_it_was_reported_last(service: Service) -> None:
    service.open(order("a"))
    service.work(job("me-a-0", 15, 20), replica="lost")
    service.work(job("me-a-0", 5, 20), replica="new")
    del service.replicas["lost"]
    service.pass_time(10)
    assert service.seen("a").progress == pytest.approx(0.26)


def test_a_gateway_that_fell_silent_is_forgotten_with_its_orders(service: Service) -> None:
    service.open(order("a"), gateway="lost")
    service.open(order("b"), gateway="there")
    del service.gateways["lost"]
    service.pass_time(10)
    assert service.ask("a") is None
    assert service.ask("b") is not None


def test_an_order_that_is_done_is_remembered_for_a_while(service: Service) -> None:
    a = order("a")
    service.open(a)
    service.close(a)
    seen = service.seen("a")
    assert (seen.state, seen.progress) == ("done", 1.0)
    assert service.ask() is None
    assert service.ask("a", key="other") is None
    service.pass_time(REMEMBERED_SECONDS + 2)
    assert service.ask("a") is None


def test_an_order_too_quick_to_be_seen_open_is_remembered_all_the_same(service: Service) -> None:
    service.board.report_orders("g", [], [report(order("a"))])
    assert service.seen("a").state == "done"


def test_so_many_are_remembered_and_no_more(service: Service) -> None:
    ids = [str(number) for number in range(MOST_REMEMBERED + 1)]
    service.board.report_orders("g", [], [report(order(id)) for id in ids])
    assert service.ask(ids[0]) is None
    assert service.ask(ids[1]) is not None


def test_an_id_that_is_used_again_is_the_open_order(service: Service) -> None:
    first = order("a", steps=10)
    service.open(first)
    service.close(first)
    service.open(order("a", steps=30))
    assert service.seen("a").sampling_steps == 30


def test_of_two_callers_with_one_id_each_sees_its_own(service: Service) -> None:
    service.open(order("a", key="me", steps=10), order("a", key="you", steps=30))
    assert service.seen("a", key="me").sampling_steps == 10
    assert service.seen("a", key="you").sampling_steps == 30
    assert service.ask("a", key="nobody") is None


def test_without_an_id_it_is_the_oldest_of_the_callers_that_runs(service: Service) -> None:
    service.open(order("theirs", key="you"))
    service.open(order("a"))
    assert service.seen().id == "a"
    service.pass_time(1)
    service.open(order("b"), gateway="h")
    service.pass_time(1)
    service.open(order("c"))
    service.work(job("me-b-0"), job("me-c-0"), job("you-theirs-0"))
    assert service.seen().id == "b"


def test_places_go_by_arrival_over_all_gateways_and_keys(service: Service) -> None:
    service.open(order("a"), gateway="g")
    service.pass_time(1)
    service.open(order("b", key="you"), gateway="h")
    service.open(order("elsewhere", checkpoint="other"), gateway="h")
    service.pass_time(1)
    service.open(order("c"), gateway="g")
    service.pass_time(1)
    places = [
        (seen.place, seen.places)
        for seen in (service.seen("a"), service.seen("b", key="you"), service.seen("c"))
    ]
    assert places == [(1, 3), (2, 3), (3, 3)]
    service.work(job("me-a-0"))
    service.pass_time(1)
    assert (service.seen("c").place, service.seen("c").places) == (2, 2)
    assert service.seen("a").place is None


def test_an_order_that_has_begun_in_part_is_still_ahead(service: Service) -> None:
    service.open(order("a", jobs=2))
    service.pass_time(1)
    service.open(order("b"))
    service.work(job("me-a-0"))
    service.pass_time(1)
    assert (service.seen("b").place, service.seen("b").places) == (2, 2)


def test_places_are_by_arrival_also_for_a_board_that_begins_anew(service: Service) -> None:
    for id, gateway in (("a", "g"), ("b", "h"), ("c", "g")):
        service.open(order(id), gateway=gateway)
        service.pass_time(1)
    service.board = Board(service.clock)
    for gateway in ("h", "g"):
        service.gateway_reports(gateway)
    assert [service.seen(id).place for id in ("a", "b", "c")] == [1, 2, 3]


def test_a_place_is_told_of_an_order_newer_than_what_is_known_of_the_queue(service: Service) -> None:
    service.open(order("a"))
    service.seen("a")
    service.open(order("b"))
    assert (service.seen("b").place, service.seen("b").places) == (2, 2)


def test_nothing_is_said_about_the_time_before_any_was_measured(service: Service) -> None:
    service.open(order("a"))
    assert service.seen("a").eta is None
    service.work(job("me-a-0", 10, 20))
    assert service.seen("a").eta is None


def test_the_time_of_an_order_that_runs_is_that_of_its_longest_job_at_the_present_speed(
    service: Service,
) -> None:
    """Four jobs share 20 evaluations a second: 5 for each."""
    service.open(order("a", jobs=2), order("b"))
    service.work(
        job("me-a-0", 10, 20),
        job("me-a-1", 5, 20),
        job("me-b-0", 0, 40),
        job("nobody", 0, 99),
        rate=20.0,
    )
    assert service.seen("a").eta == pytest.approx(15 / 5)
    assert service.seen("b").eta == pytest.approx(40 / 5)


def test_the_time_of_an_order_that_waits_counts_the_work_before_it(service: Service) -> None:
    """Two replicas make 30 evaluations a second together."""
    service.open(order("a", jobs=2))
    service.pass_time(1)
    service.open(order("b", steps=20))
    service.pass_time(1)
    service.open(order("c", steps=50))
    service.work(job("me-a-0", 20, 60), replica="r", rate=10.0)
    service.work(job("me-a-1", 0, 60), replica="s", rate=20.0)
    service.pass_time(1)
    assert service.seen("b").eta == pytest.approx((40 + 60 + 20) / 30)
    assert service.seen("c").eta == pytest.approx((40 + 60 + 20 + 50) / 30)


def test_the_time_is_never_less_than_the_order_would_take_alone(service: Service) -> None:
    """Many replicas do not make one picture any sooner."""
    service.open(order("a", steps=100))
    for number in range(10):
        service.work(replica=str(number), rate=10.0)
    assert service.seen("a").eta == pytest.approx(10.0)


def test_what_jobs_take_is_learnt_from_the_first_that_reaches_a_replica(service: Service) -> None:
    """Heun takes two evaluations a step, and a hires fix has more of them."""
    service.open(order("a", jobs=2, steps=20))
    service.work(job("me-a-0", 0, 70, running=False), rate=10.0)
    assert service.seen("a").eta == pytest.approx(140 / 10)


def test_idle_replicas_count_while_they_report_now_and_then(service: Service) -> None:
    service.work(rate=10.0)
    service.clock.now += IDLE_SECONDS * 2
    service.open(order("a", steps=20))
    assert service.seen("a").eta == pytest.approx(2.0)
    service.clock.now += IDLE_SECONDS * 2
    service.gateway_reports()
    service.clock.now += 2
    assert service.seen("a").eta is None


def test_previews_are_made_of_what_is_asked_about_and_for_a_while(service: Service) -> None:
    service.open(order("a", jobs=2), order("b"))
    jobs = [job("me-a-0", running=False), job("me-a-1", 3), job("me-b-0", 3)]
    assert service.work(*jobs).watched == ()
    service.ask("a", preview=True)
    assert service.work(*jobs).watched == ("me-a-1",)
    service.ask("b", preview=False)
    service.pass_time(WATCHED_SECONDS - 1)
    assert service.work(*jobs).watched == ("me-a-1",)
    service.pass_time(2)
    assert service.work(*jobs).watched == ()


def test_the_preview_is_that_of_the_first_job_that_runs(service: Service) -> None:
    service.open(order("a", jobs=2))
    service.work(job("me-a-0", 3), job("me-a-1", 3, preview=b"second"))
    assert (service.seen("a").preview, service.seen("a").preview_id) == (b"", 0)
    service.work(job("me-a-0", 3, preview=b"first"), job("me-a-1", 3, preview=b"second"))
    first = service.seen("a")
    assert first.preview == b"first"
    service.ended = {"me-a-0"}
    service.gateway_reports()
    assert service.seen("a").preview == b"second"
    assert service.seen("a").preview_id not in (0, first.preview_id)


def test_interrupted_jobs_are_stopped_where_they_are(service: Service) -> None:
    service.open(order("a", jobs=3), order("b"))
    here = [job("me-a-0", 3), job("me-a-1", running=False), job("me-b-0", 3)]
    service.work(*here)
    assert service.board.interrupt("me", "a", False) == 1
    assert service.work(*here).interrupted == ("me-a-0", "me-a-1")
    assert service.seen("a").interrupted
    assert not service.seen("a").skipped
    assert not service.seen("b").interrupted


def test_a_job_that_no_replica_has_is_stopped_by_its_gateway(service: Service) -> None:
    """Not at once: a replica may have just got it, and what it has drawn is worth more than nothing."""
    service.open(order("a", jobs=2))
    service.work(job("me-a-0", 3))
    service.board.interrupt("me", "a", False)
    assert service.gateway_reports().interrupted == ()
    service.pass_time(1)
    assert service.gateway_reports().interrupted == ("me-a-1",)
    service.ended = {"me-a-1"}
    assert service.gateway_reports().interrupted == ()


def test_a_picture_on_its_way_is_not_stopped(service: Service) -> None:
    service.open(order("a"))
    service.work(job("me-a-0", 20, 20))
    service.board.interrupt("me", "a", False)
    service.work()
    service.pass_time(3)
    assert service.gateway_reports().interrupted == ()


def test_a_job_that_reaches_a_replica_after_the_interruption_is_stopped_there(service: Service) -> None:
    service.open(order("a"))
    service.board.interrupt("me", "a", False)
    assert service.work(job("me-a-0", running=False)).interrupted == ("me-a-0",)
    service.pass_time(3)
    assert service.gateway_reports().interrupted == ()


def test_a_job_that_was_to_stop_and_lost_its_replica_is_stopped_by_its_gateway(service: Service) -> None:
    service.open(order("a"))
    service.work(job("me-a-0", 3))
    service.board.interrupt("me", "a", False)
    del service.replicas["r"]
    service.pass_time(10)
    assert service.gateway_reports().interrupted == ("me-a-0",)


def test_without_an_id_all_of_the_callers_orders_stop_and_no_others(service: Service) -> None:
    service.open(order("a"), order("b"), order("theirs", key="you"))
    jobs = [job("me-a-0"), job("me-b-0"), job("you-theirs-0")]
    service.work(*jobs)
    assert service.board.interrupt("me", None, False) == 2
    assert service.work(*jobs).interrupted == ("me-a-0", "me-b-0")


def test_another_keys_order_is_not_stopped(service: Service) -> None:
    service.open(order("a"))
    service.work(job("me-a-0"))
    assert service.board.interrupt("you", "a", False) == 0
    assert service.work(job("me-a-0")).interrupted == ()


def test_skipping_leaves_what_has_not_begun(service: Service) -> None:
    service.open(order("a", jobs=3))
    here = [job("me-a-0", 3), job("me-a-1", running=False)]
    service.work(*here)
    assert service.board.interrupt("me", None, True) == 1
    assert service.work(*here).interrupted == ("me-a-0",)
    service.pass_time(3)
    assert service.gateway_reports().interrupted == ()
    assert service.seen("a").skipped
    assert not service.seen("a").interrupted


def test_skipping_what_has_not_begun_does_nothing(service: Service) -> None:
    service.open(order("a"))
    assert service.board.interrupt("me", None, True) == 0
    assert not service.seen("a").skipped


@pytest.mark.parametrize("id", ["a", None])
def test_an_order_that_is_reported_after_its_interruption_is_stopped(
    service: Service, id: str | None
) -> None:
    """A client may have gone again before its gateway's next report."""
    assert service.board.interrupt("me", id, False) == 0
    service.board.report_orders("g", [report(order("a"), number=1, seconds=0.2)], [])
    assert service.work(job("me-a-0")).interrupted == ("me-a-0",)


def test_an_interruption_does_not_stop_what_is_opened_after_it(service: Service) -> None:
    service.board.interrupt("me", None, False)
    service.clock.now += 0.1
    service.open(order("a"))
    service.open(order("b", key="you"))
    assert service.work(job("me-a-0"), job("you-b-0")).interrupted == ()


def test_a_new_board_knows_all_but_what_was_to_stop(service: Service) -> None:
    service.open(order("a", jobs=2), order("b"))
    service.work(job("me-a-0", 5, 20), rate=10.0)
    service.ended = {"me-a-1"}
    service.pass_time(1)
    before = service.seen("a"), service.seen("b")
    service.board = Board(service.clock)
    service.pass_time(1)
    assert (service.seen("a"), service.seen("b")) == before


def test_reporters_are_told_to_wait_so_that_all_together_stay_within_the_limit(service: Service) -> None:
    assert service.open(order("a")).wait == SHORTEST_SECONDS
    replicas = 2 * REPORTS_PER_SECOND
    for number in range(replicas):
        told = service.work(job(f"of-{number}"), replica=str(number))
    assert replicas / told.wait <= REPORTS_PER_SECOND
    for number in range(replicas):
        told = service.work(replica=str(number))
    assert told.wait == SHORTEST_SECONDS


def test_reporters_with_many_orders_wait_longer(service: Service) -> None:
    orders = [order(str(number), jobs=16) for number in range(1000)]
    wait = service.open(*orders).wait
    assert 16_000 / wait <= JOBS_PER_SECOND


def test_those_who_wait_longer_are_not_forgotten_meanwhile(service: Service) -> None:
    for number in range(10 * REPORTS_PER_SECOND):
        service.work(job(f"of-{number}"), replica=str(number))
    wait = service.open(order("a")).wait
    assert wait > 5
    service.clock.now += 2 * wait
    assert service.ask("a") is not None


def test_an_order_without_steps_runs_and_is_in_nobodys_way(service: Service) -> None:
    service.open(replace(order("a", jobs=2, batch_size=2, steps=0), kind="extras"))
    service.work(rate=10.0)
    service.pass_time(1)
    service.open(order("b", steps=20))
    seen = service.seen("a")
    assert (seen.state, seen.progress, seen.eta, seen.job_count) == ("running", 0.01, None, 1)
    assert (service.seen("b").place, service.seen("b").places) == (1, 1)
    assert service.seen("b").eta == pytest.approx(2.0)
    service.ended = {"me-a-0"}
    service.gateway_reports()
    assert service.seen("a").progress == 0.51


def test_an_order_without_jobs_is_no_error(service: Service) -> None:
    service.board.report_orders("g", [report(order("a", jobs=0, batch_size=0))], [])
    assert (service.seen("a").state, service.seen("a").progress) == ("queued", 0.0)


def test_nothing_is_kept_of_what_is_over(service: Service) -> None:
    """A service that runs for months must not grow."""
    for number in range(50):
        each = order(str(number), jobs=4)
        service.open(each)
        service.work(*(job(name) for name in each.jobs))
        service.board.interrupt("me", each.id, False)
        service.close(each)
    service.work()
    service.pass_time(REMEMBERED_SECONDS + 10)
    board = service.board
    kept: list[object] = [board._done, board._interrupts, board._queues, board._gateways, board._orders.jobs]
    kept += [index._orders for index in board._orders._indexes]
    kept += [board._replicas._holders, board._replicas._replicas["r"].jobs, board._replicas._busy]
    assert not any(kept)
