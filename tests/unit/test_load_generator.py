import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import grpc
import numpy as np
import pytest

from tests.unit.kserve_server import KServe
from themis_triton.core.errors import ServerError, SettingsError
from themis_triton.load.generator import run_load
from themis_triton.load.options import LoadOptions, PipelineLoad, from_json, to_json
from themis_triton.load.results import LoadReport, LoadResult, SecondStats
from themis_triton.load.traces import TraceOptions, arrivals, load_trace

VIDEO = ("detector", "classifier")


def video(rate_rps: float = 60.0, duration_s: int = 1, slo_ms: float = 100.0, stages: tuple[str, ...] = VIDEO) -> PipelineLoad:
    return PipelineLoad("video", stages, slo_ms, TraceOptions(rate_rps=rate_rps, duration_s=duration_s))


Loaded = tuple[LoadReport, tuple[LoadResult, ...], list[SecondStats]]


async def loaded(server: KServe, *pipelines: PipelineLoad, stop_after_s: float | None = None, **options: Any) -> Loaded:
    seconds: list[SecondStats] = []
    stop = asyncio.Event()
    async with server.serve():

        def on_start(_duration_s: int, _requests: int) -> None:
            if stop_after_s is not None:
                asyncio.get_running_loop().call_later(stop_after_s, stop.set)

        given = LoadOptions(server.address, pipelines or (video(),), **options)
        report, results = await run_load(given, on_start, seconds.append, stop)
    return report, results, seconds


def load(server: KServe, *pipelines: PipelineLoad, stop_after_s: float | None = None, **options: Any) -> Loaded:
    return asyncio.run(loaded(server, *pipelines, stop_after_s=stop_after_s, **options))


def spoil_value(model: str, number: int, answer: Any) -> None:
    if model == "classifier" and number % 4 == 0:
        answer.raw_output_contents[0] = bytes(len(answer.raw_output_contents[0]))


def spoil_to_empty(_model: str, _number: int, answer: Any) -> None:
    answer.raw_output_contents[0] = b""


def spoil_outputs(_model: str, _number: int, answer: Any) -> None:
    del answer.outputs[:]


def swapped() -> Callable[[str, int, Any], None]:
    kept: list[bytes] = []

    def swap(model: str, _number: int, answer: Any) -> None:
        if model == "detector":
            kept.append(answer.raw_output_contents[0])
            answer.raw_output_contents[0] = kept[max(0, len(kept) - 2)]

    return swap


def every_other(model: str, number: int) -> grpc.StatusCode | None:
    return grpc.StatusCode.UNAVAILABLE if model == "detector" and number % 2 else None


ALONE = PipelineLoad("alone", ("classifier",), 50.0, TraceOptions(rate_rps=30, duration_s=1))
Case = tuple[KServe, tuple[PipelineLoad, ...], dict[str, Any]]


@lru_cache
def side_by_side() -> dict[str, tuple[KServe, Loaded]]:
    """Loads in which no time is measured finely, each on a server of its own and all at once."""
    cases: dict[str, Case] = {
        "healthy": (KServe(), (video(rate_rps=100, slo_ms=2000),), {}),
        "value": (KServe(spoil=spoil_value), (video(rate_rps=40, slo_ms=2000),), {}),
        "empty": (KServe(spoil=spoil_to_empty), (video(rate_rps=40, slo_ms=2000),), {}),
        "outputs": (KServe(spoil=spoil_outputs), (video(rate_rps=40, slo_ms=2000),), {}),
        "swapped": (KServe(spoil=swapped()), (video(rate_rps=40),), {}),
        "refused": (KServe(fail_with=every_other), (video(rate_rps=40),), {}),
        "deadline": (KServe(delay_s=lambda _model, _number: 0.3), (video(rate_rps=20),), {"request_timeout_s": 0.45}),
        "drain": (KServe(delay_s=lambda _model, number: 60.0 if number == 0 else 0.0), (video(rate_rps=20),), {"drain_s": 0.2}),
        "seconds": (KServe(), (video(rate_rps=40, duration_s=2, slo_ms=0.001),), {}),
        "several": (KServe(), (video(rate_rps=30), ALONE), {}),
        "echo": (KServe(), (video(rate_rps=10, stages=("echo",)),), {"shapes": {"echo.TEXT": (2,)}}),
    }

    async def run() -> list[Loaded]:
        return await asyncio.gather(*(loaded(server, *pipelines, **options) for server, pipelines, options in cases.values()))

    return {name: (case[0], outcome_found) for (name, case), outcome_found in zip(cases.items(), asyncio.run(run()), strict=True)}


def test_every_request_walks_the_chain_and_is_answered() -> None:
    server, (report, (result,), _) = side_by_side()["healthy"]
    intended = arrivals(load_trace(TraceOptions(rate_rps=100, duration_s=1)), 0)
    assert result.intended_s.tolist() == intended.tolist()
    (summary,) = report.summaries
    assert (summary.requests, summary.failed, summary.errors) == (intended.size, 0, {})
    assert summary.slo_attainment == 1.0
    assert summary.p50_ms is not None
    assert summary.p99_ms is not None
    assert 0.0 < summary.p50_ms <= summary.p99_ms < 2000.0
    assert (
        [model for model, _, _ in server.seen].count("detector")
        == [model for model, _, _ in server.seen].count("classifier")
        == intended.size
    )


def test_a_stage_gets_the_answer_of_the_stage_before() -> None:
    server, _ = side_by_side()["healthy"]
    given = {model: {raw for name, _, raw in server.seen if name == model} for model in VIDEO}
    answers = {(np.frombuffer(raw, "<f4") * 2 + 0.5).astype("<f4").tobytes() for raw in given["detector"]}
    assert given["classifier"] == answers
    assert len(answers) > 10


def test_a_slow_server_does_not_slow_the_sends() -> None:
    """A closed loop of any width would need 60 × 0.6 s; here all of them are on the way at once."""
    server = KServe(delay_s=lambda model, _number: 0.6 if model == "detector" else 0.0)
    report, (result,), _ = load(server, video(rate_rps=60, slo_ms=500))
    sent = np.sort([at_s for model, at_s, _ in server.seen if model == "detector"])
    drift_ms = ((sent - sent[0]) - (result.intended_s - result.intended_s[0])) * 1000
    assert np.abs(drift_ms).max() < 400
    assert server.most_in_flight > 15
    assert report.summaries[0].slo_attainment == 0.0
    assert report.summaries[0].failed == 0
    assert result.latency_ms.min() > 600


def test_latency_counts_from_the_intended_time_when_the_sender_is_late() -> None:
    """The event loop is blocked for 0.4 s; requests due meanwhile are sent late, none is skipped, and their wait is measured."""

    def block(_model: str, number: int) -> float:
        if number == 20:
            end_s = asyncio.get_running_loop().time() + 0.4
            while asyncio.get_running_loop().time() < end_s:
                pass
        return 0.0

    report, (result,), _ = load(KServe(delay_s=block), video(rate_rps=100, slo_ms=200))
    assert result.intended_s.size == arrivals(load_trace(TraceOptions(rate_rps=100, duration_s=1)), 0).size
    assert report.summaries[0].max_lateness_ms > 300
    late = result.lateness_ms > 200
    assert np.all(result.latency_ms[late] >= result.lateness_ms[late])
    assert report.summaries[0].slo_attainment < 1.0


@pytest.mark.parametrize(("spoilt", "message"), [("value", "expected ["), ("empty", "0 bytes"), ("outputs", "0 outputs")])
def test_a_wrong_answer_is_a_failed_request(spoilt: str, message: str) -> None:
    _, (report, (result,), _) = side_by_side()[spoilt]
    (summary,) = report.summaries
    assert 0 < summary.failed == summary.errors["wrong_answer"] == np.count_nonzero(~result.ok)
    assert message in summary.first_messages["wrong_answer"]
    assert summary.slo_attainment == pytest.approx(1.0 - summary.failed / summary.requests)


def test_answers_mixed_up_between_requests_are_noticed() -> None:
    _, (report, _, _) = side_by_side()["swapped"]
    assert report.summaries[0].failed >= report.summaries[0].requests - 2


def test_refusals_are_counted_by_kind_and_end_the_chain() -> None:
    server, (report, _, _) = side_by_side()["refused"]
    (summary,) = report.summaries
    assert 0 < summary.failed == summary.errors["unavailable"]
    assert summary.first_messages["unavailable"] == "detector will not"
    assert sum(model == "classifier" for model, _, _ in server.seen) == summary.requests - summary.failed


def test_a_request_has_one_deadline_over_all_its_stages() -> None:
    server, (report, (result,), _) = side_by_side()["deadline"]
    assert report.summaries[0].errors == {"deadline_exceeded": report.summaries[0].requests}
    assert result.latency_ms.min() > 400
    assert any(model == "classifier" for model, _, _ in server.seen)


def test_the_drain_is_bounded_and_what_is_left_has_failed() -> None:
    _, (report, _, seconds) = side_by_side()["drain"]
    assert report.summaries[0].errors == {"unfinished": 1}
    assert sum(second.failed for second in seconds) == 1


def test_stop_ends_the_sending_and_keeps_what_was_measured() -> None:
    report, (result,), _ = load(KServe(), video(rate_rps=50, duration_s=60), stop_after_s=0.7)
    assert report.stopped_early
    assert 5 < report.summaries[0].requests == result.intended_s.size < 1000
    assert report.summaries[0].failed == 0


def test_the_seconds_add_up_to_the_whole() -> None:
    _, (report, _, seconds) = side_by_side()["seconds"]
    (summary,), (series,) = report.summaries, report.series
    assert sum(second.sent for second in seconds) == sum(series.sent) == summary.requests
    assert sum(second.ok for second in seconds) == summary.requests
    assert sum(second.violations for second in seconds) == sum(series.violations) == summary.requests
    assert [second.at_s for second in seconds[:2]] == [1.0, 2.0]
    assert seconds[0].p50_ms is not None
    assert len(series.p99_ms) == report.duration_s == 2
    assert report.cpu_s > 0.0


def test_several_pipelines_run_at_the_same_time() -> None:
    _, (report, results, seconds) = side_by_side()["several"]
    assert [summary.pipeline for summary in report.summaries] == ["video", "alone"]
    assert [summary.failed for summary in report.summaries] == [0, 0]
    assert results[0].intended_s.tolist() != results[1].intended_s.tolist()
    assert {second.pipeline for second in seconds} == {"video", "alone"}


def test_any_model_can_be_asked() -> None:
    server, (report, _, _) = side_by_side()["echo"]
    assert report.summaries[0].failed == 0
    raw = server.seen[0][2]
    length = int.from_bytes(raw[:4], "little")
    assert raw[4 : 4 + length].isdigit()


@pytest.mark.parametrize(
    ("options", "error", "outcome_found"),
    [
        ({"shapes": {"echo.TEXT": (3, 5)}}, SettingsError, r"--shape echo.TEXT: \[3, 5\] is invalid: expected \[-1, 2\]"),
        ({"pipelines": (video(stages=("nobody",)),)}, ServerError, "unknown model: 'nobody'"),
        ({"pipelines": ()}, SettingsError, "--pipeline"),
        ({"pipelines": (video(stages=()),)}, SettingsError, "no stage"),
        ({"pipelines": (video(slo_ms=0),)}, SettingsError, "--slo-ms"),
        ({"address": "http://127.0.0.1:8000"}, SettingsError, "HOST:PORT"),
        ({"address": "127.0.0.1:9", "connect_timeout_s": 0.3}, ServerError, "127.0.0.1:9: no gRPC server answered within 0.3 s"),
    ],
)
def test_what_cannot_be_sent_is_said_before_the_first_request(options: dict[str, Any], error: type[Exception], outcome_found: str) -> None:
    async def run() -> None:
        async with KServe().serve() as server:
            await run_load(LoadOptions(**{"address": server.address, "pipelines": (video(stages=("echo",)),), **options}))

    with pytest.raises(error, match=outcome_found):
        asyncio.run(run())


def test_options_travel_as_json() -> None:
    options = LoadOptions("127.0.0.1:1", (video(),), seed=4, shapes={"a.b": (1, 2)})
    assert from_json(to_json(options)) == options
    with pytest.raises(SettingsError, match="pipelines"):
        from_json('{"address": "127.0.0.1:1"}')
