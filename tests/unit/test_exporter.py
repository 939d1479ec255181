import math
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, action, config, record, route, server, snapshot
from tests.unit.test_node_types import priced
from themis_triton.adapters.exporter import Exporter
from themis_triton.core.action import ActionKind, Outcome, OutcomeKind
from themis_triton.core.decision import Decision, PipelineEvidence, Reason, Stage, Target
from themis_triton.core.estimate import PROXY, PipelineKnowledge
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.observation import ServerReading
from themis_triton.core.prediction import PredictionScore
from themis_triton.core.record import TickRecord

EVIDENCE = PipelineEvidence("video", 151.0, 120.0, 92.0, 300.0, None, 250.0, servers_now=1, servers_desired=3)

SCORE = PredictionScore("video", False, 0.01, NOW_S, 60.0, 1000.0, 120.0, 60.0, 92.0, p99_ratio=1.8)


def samples(exporter: Exporter) -> dict[tuple[str, ...], float]:
    """Values by name and label values, in the order of the labels' names."""
    families = text_string_to_metric_families(exporter.text().decode())
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def seen(*servers: Server) -> TickRecord:
    decision = Decision("d", NOW_S, "themis", Stage.ABSORB, Reason.SURGE, None, (EVIDENCE,), predictions=(SCORE,))
    return record(decision=decision, seen=snapshot(servers))


def test_a_tick_shows_in_every_metric() -> None:
    exporter = Exporter()
    done = Outcome(action(ActionKind.GROW), OutcomeKind.DONE, NOW_S, NOW_S + 2)
    refused = Outcome(action(ActionKind.GROW), OutcomeKind.REFUSED, NOW_S, NOW_S + 9)
    taken = seen(server("a", (3, 1)), server("b", (2, 1), phase=Phase.WARMING))
    stale = replace(taken.estimate, stale={PROXY: "silent"})
    exporter.take(replace(taken, outcomes=(done, refused), estimate=stale), 0.004)
    result = samples(exporter)
    assert result["themis_ticks_total", "surge"] == 1.0
    assert result["themis_tick_seconds_bucket", "0.0025"] == 0.0
    assert result["themis_tick_seconds_bucket", "0.005"] == 1.0
    assert result["themis_demand_rps", "video", "fast"] == 151.0
    assert result["themis_demand_rps", "video", "slow"] == 120.0
    assert result["themis_capacity_rps", "video"] == 92.0
    learning = replace(taken.estimate, knowledge=(PipelineKnowledge("video", enough=False, models=()),))
    exporter.take(replace(taken, estimate=learning), 0.004)
    assert math.isnan(samples(exporter)["themis_capacity_rps", "video"]), "a guess"
    assert result["themis_p99_seconds", "predicted", "video"] == 0.25
    assert math.isnan(result["themis_p99_seconds", "measured", "video"])
    assert result["themis_predictions_hold", "video"] == 0.0
    assert (result["themis_prediction_late_ratio", "video"], result["themis_prediction_p99_ratio", "video"]) == (0.12, 1.8)
    assert math.isnan(result["themis_prediction_launch_ratio", "video"])
    assert result["themis_servers", "serving"] == result["themis_servers", "warming"] == 1.0
    assert result["themis_instances", DETECTOR, "a"] == 3.0
    assert result["themis_instances", CLASSIFIER, "b"] == 1.0
    assert result["themis_actions_total", "grow", "done"] == result["themis_actions_total", "grow", "refused"] == 1.0
    assert (result["themis_action_seconds_count", "grow"], result["themis_action_seconds_sum", "grow"]) == (1.0, 2.0)
    assert result["themis_stale_sources",] == 1.0


def test_what_runs_is_shown_beside_what_may_run_and_how_old_each_source_is() -> None:
    exporter = Exporter()
    readings = (ServerReading("a", NOW_S - 0.5), ServerReading("b", NOW_S - 1.0))
    routes = (route(DETECTOR, NOW_S - 0.25, 10.0),)
    servers = [server("a", (3, 1), slot="cpu:0"), server("b", (2, 1), slot="cpu:1")]
    first = record(seen=replace(snapshot(servers), readings=readings, routes=routes))
    later = replace(snapshot(servers, NOW_S + 4.0), readings=(ServerReading("a", NOW_S + 4.0, error="refused"),), free_places={"cheap": 3})
    target = Target({each.name: each.models for each in servers}, {"cpu:2": servers[0].models}, retire=("b",))
    decision = Decision("d", NOW_S, "themis", Stage.ABSORB, Reason.SURGE, target, (EVIDENCE,))
    exporter.take(first, 0.004)
    exporter.take(record(seen=later, decision=decision), 0.004)
    assert ("themis_slots", "used") not in samples(exporter)
    exporter.show_times(config(slots=4), 0.3, 0.05)
    result = samples(exporter)
    assert (result["themis_tick_lag_seconds",], result["themis_route_take_up_seconds",]) == (0.3, 0.05)
    assert (result["themis_slots", "used"], result["themis_slots", "free"]) == (2.0, 2.0)
    assert (result["themis_wanted_instances", DETECTOR], result["themis_wanted_instances", CLASSIFIER]) == (6.0, 2.0)
    assert result["themis_max_instances", DETECTOR] == config().models[DETECTOR].max_instances
    assert result["themis_cost_per_second",] == 27.0
    assert not [name for name, *_ in result if name == "themis_price_per_hour"]
    assert result["themis_free_places", "cheap"] == 3.0
    exporter.show_times(priced(config(slots=4), {"cpu:0": 2.5, "cpu:1": 0.5, "cpu:2": 4.0}), 0.3, 0.05)
    prices = {labels[0]: price for (name, *labels), price in samples(exporter).items() if name == "themis_price_per_hour"}
    assert prices == {"cheap": 0.5, "dear": 2.5}
    ages = {source: result["themis_source_age_seconds", source] for source in ("a", "b", PROXY)}
    assert ages == {"a": 4.5, "b": 5.0, PROXY: 4.25}


def test_a_limit_is_shown_with_what_it_refuses_while_there_is_one() -> None:
    exporter = Exporter()
    limited = replace(EVIDENCE, limit_rps=92.0, refused_rps=59.0)
    taken = seen(server("a"))
    exporter.take(replace(taken, decision=replace(taken.decision, evidence=(limited,))), 0.004)
    result = samples(exporter)
    assert (result["themis_admission_limit_rps", "video"], result["themis_refused_rps", "video"]) == (92.0, 59.0)
    exporter.take(taken, 0.004)
    assert not [name for name, *_ in samples(exporter) if name in ("themis_admission_limit_rps", "themis_refused_rps")]


def test_a_server_that_is_gone_is_no_longer_told_and_counters_go_on() -> None:
    exporter = Exporter()
    exporter.take(seen(server("a"), server("b")), 0.001)
    exporter.take(seen(server("b")), 0.001)
    result = samples(exporter)
    assert result["themis_servers", "serving"] == 1.0
    assert ("themis_instances", DETECTOR, "a") not in result
    assert result["themis_ticks_total", "surge"] == 2.0


def test_a_slot_whose_launches_rest_is_shown_for_as_long_as_they_do() -> None:
    exporter, taken = Exporter(), seen(server("a"))
    exporter.take(replace(taken, snapshot=replace(taken.snapshot, resting={"cpu:1": "warm-up failed"})), 0.001)
    assert samples(exporter)["themis_resting", "cpu:1"] == 1.0
    exporter.take(taken, 0.001)
    assert ("themis_resting", "cpu:1") not in samples(exporter)


def test_failed_ticks_are_counted() -> None:
    exporter = Exporter()
    exporter.tick_failed()
    assert samples(exporter)["themis_tick_errors_total",] == 1.0


def test_the_gauge_of_stale_sources_falls_again() -> None:
    exporter, fresh = Exporter(), seen(server("a"))
    exporter.take(replace(fresh, estimate=replace(fresh.estimate, stale={PROXY: "silent", "a": "silent"})), 0.001)
    assert samples(exporter)["themis_stale_sources",] == 2.0
    exporter.take(fresh, 0.001)
    assert samples(exporter)["themis_stale_sources",] == 0.0
