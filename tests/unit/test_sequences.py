"""Models with state between calls: one server has their calls, and their changes are in place or refused."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig as TritonConfig

from tests.unit.fakes import Bench
from tests.unit.samples import BY_METRIC, CLASSIFIER, DETECTOR, NOW_S, action, config, decided, estimate, launch, server, snapshot
from themis_triton.act.stray_sequences import StraySequences
from themis_triton.adapters.process_connections import has_clients, listening_since_s
from themis_triton.adapters.process_identity import identify
from themis_triton.adapters.triton.sequences import check_in_place
from themis_triton.adapters.triton.structure import Structure, stateful_models, structure_of
from themis_triton.core.action import ActionKind, Plan
from themis_triton.core.address import Address
from themis_triton.core.config import PipelineConfig, Placement
from themis_triton.core.decision import Target
from themis_triton.core.errors import ChangeRefusedError
from themis_triton.core.estimate import Estimate, OtherDemand, PipelineEstimate
from themis_triton.core.fleet import ModelState, Phase, Server, with_pins
from themis_triton.core.incident import Incident, IncidentKind
from themis_triton.core.observation import ModelCounters, ServerReading
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.plan.routes import route_table


def holder(name: str, *stateful: str, phase: Phase = Phase.SERVING) -> Server:
    return replace(server(name), stateful=stateful, phase=phase)


def pins(servers: tuple[Server, ...]) -> dict[str, tuple[str, ...]]:
    return {each.name: each.pinned for each in servers if each.pinned}


class TestPins:
    def test_a_pin_stays_while_its_server_serves_and_moves_when_it_is_gone(self) -> None:
        both = with_pins((holder("b", DETECTOR), holder("c", DETECTOR)))
        assert pins(both) == {"b": (DETECTOR,)}
        joined = with_pins((holder("a", DETECTOR), *both))
        assert pins(joined) == {"b": (DETECTOR,)}
        silent = with_pins(tuple(replace(s, phase=Phase.UNREACHABLE) if s.name == "b" else s for s in joined))
        assert pins(silent) == {"a": (DETECTOR,)}
        back = with_pins(tuple(replace(s, phase=Phase.SERVING) for s in silent))
        assert pins(back) == {"a": (DETECTOR,)}

    def test_all_stateful_stages_find_one_server(self) -> None:
        assert pins(with_pins((holder("a", DETECTOR), holder("b", CLASSIFIER, DETECTOR)))) == {"b": (CLASSIFIER, DETECTOR)}

    def test_a_server_that_leaves_the_routes_has_no_pins(self) -> None:
        assert pins(with_pins((holder("a", DETECTOR, phase=Phase.DRAINING),))) == {}

    def test_only_the_pinned_server_is_an_endpoint_of_the_model(self) -> None:
        table = route_table(with_pins((holder("a", DETECTOR), holder("b", DETECTOR))), (DETECTOR, CLASSIFIER))
        assert [each.server for each in table.models[DETECTOR].targets] == ["a"]
        assert [each.server for each in table.models[CLASSIFIER].targets] == ["a", "b"]


def test_an_ensemble_with_a_stateful_step_is_stateful_however_deep() -> None:
    ensemble = TritonConfig()
    ensemble.ensemble_scheduling.step.add(model_name="inner")
    sequence = TritonConfig()
    sequence.sequence_batching.SetInParent()
    structures = {"outer": structure_of(ensemble), "inner": Structure(steps=("one",)), "one": structure_of(sequence), "other": Structure()}
    assert stateful_models(structures) == ("inner", "one", "outer")


def test_a_model_that_calls_a_stateful_one_by_itself_is_stateful_where_the_settings_name_its_callees() -> None:
    structures = {"bls": Structure().calling(("ens",)), "ens": Structure(steps=("one",)), "one": Structure(stateful=True)}
    assert stateful_models(structures) == ("bls", "ens", "one")
    assert Structure().calling(()) == Structure()


class TestStrays:
    """Requests of a stateful model on a server without its pin."""

    @staticmethod
    def notes(counts: tuple[tuple[float, float], ...], *, pinned: str = "a") -> tuple[list[Incident], StraySequences]:
        incidents: list[Incident] = []
        strays = StraySequences(incidents)
        servers = tuple(replace(holder(name, DETECTOR), pinned=(DETECTOR,) if name == pinned else ()) for name in ("a", "b"))
        for at_s, count in counts:
            readings = [ServerReading(name, at_s, {DETECTOR: ModelCounters(success=count)}) for name in ("a", "b")]
            strays.note(servers, readings)
        return incidents, strays

    def test_a_caller_that_the_settings_do_not_name_is_found_and_told_once(self) -> None:
        incidents, strays = self.notes(((0.0, 5.0), (10.0, 9.0), (11.0, 9.0), (12.0, 10.0), (13.0, 11.0)))
        assert [(each.kind, each.server, each.model) for each in incidents] == [(IncidentKind.SEQUENCE_STRAYED, "b", DETECTOR)]
        assert strays.faults == (incidents[0].sentence,)
        assert incidents[0].sentence.endswith("Fix: name it among the `calls` of its caller")

    def test_older_requests_that_end_after_a_pin_moved_are_no_fault(self) -> None:
        incidents, strays = self.notes(((0.0, 5.0), (5.0, 9.0), (10.0, 9.0), (20.0, 9.0), (21.0, 0.0)))
        assert (incidents, strays.faults) == ([], ())

    def test_the_fault_ends_with_the_pin(self) -> None:
        _, strays = self.notes(((0.0, 0.0), (10.0, 0.0), (11.0, 1.0)))
        assert strays.faults
        strays.note((replace(holder("b", DETECTOR), pinned=(DETECTOR,)),), ())
        assert strays.faults == ()


def test_plans_of_a_stateful_pipeline_have_one_server() -> None:
    settings = config()
    problem = build_rules(settings).problems[settings.pipelines[0].name]
    assert problem.max_servers > 1
    models = settings.models | {CLASSIFIER: replace(settings.models[CLASSIFIER], stateful=True)}
    rules = build_rules(replace(settings, models=models))
    assert rules.problems[settings.pipelines[0].name].max_servers == 1


@pytest.mark.parametrize("name", [name for name in PolicyName if name not in {PolicyName.STATIC, *BY_METRIC}])
class TestDeciding:
    @staticmethod
    def target(name: PolicyName, servers: tuple[Server, ...], *, flagged: bool = False) -> Target:
        settings = config(PolicyConfig(name=name))
        models = settings.models | {CLASSIFIER: replace(settings.models[CLASSIFIER], stateful=flagged)}
        planner = Planner(build_rules(replace(settings, models=models)))
        decision = decided(PolicyState(), PolicyInput(snapshot(servers), estimate(500.0)), planner)[1]
        assert decision.target is not None
        return decision.target

    def test_no_second_server_is_launched_for_a_stateful_stage(self, name: PolicyName) -> None:
        assert self.target(name, with_pins((server("a"),))).launch != {}
        assert self.target(name, with_pins((holder("a", CLASSIFIER),))).launch == {}

    def test_a_first_server_is_launched_alone(self, name: PolicyName) -> None:
        assert len(self.target(name, (), flagged=True).launch) == 1

    def test_only_the_pinned_server_changes(self, name: PolicyName) -> None:
        servers = with_pins((holder("a", CLASSIFIER), holder("b", CLASSIFIER)))
        target = self.target(name, servers)
        assert (target.servers["b"], target.retire) == (servers[1].models, ())


def test_a_copy_of_a_model_whose_calls_go_to_another_server_only_stands_by() -> None:
    """The classifier's calls go to `a`, which holds nothing else; the video pipeline's detector is elsewhere, or to be launched."""
    settings = config()
    models = settings.models | {CLASSIFIER: replace(settings.models[CLASSIFIER], stateful=True)}
    lone = PipelineConfig("lone", (CLASSIFIER,), slo_ms=300.0)
    settings = replace(settings, models=models, pipelines=(*settings.pipelines, lone))
    rate = PipelineEstimate("video", 60.0, 60.0, 60.0, 0.0, 0.0, None, others=((), (OtherDemand("lone", 1.0, 1.0),)))
    called = PipelineEstimate("lone", 1.0, 1.0, 1.0, 0.0, 0.0, None, others=((OtherDemand("video", 60.0, 60.0),),))
    estimated = Estimate(NOW_S, pipelines={"video": rate, "lone": called}, history_s=60.0)
    only = replace(holder("a", CLASSIFIER), models={CLASSIFIER: ModelState(1, 8)}, pinned=(CLASSIFIER,))

    def target(*servers: Server) -> Target:
        seen = PolicyInput(snapshot(with_pins(servers)), estimated)
        decision = decided(PolicyState(), seen, Planner(build_rules(settings)))[1]
        assert decision.target is not None
        return decision.target

    (launched,) = target(only).launch.values()
    assert (launched[DETECTOR].instances > 1, launched[CLASSIFIER].instances) == (True, 1)
    running = target(only, holder("b", CLASSIFIER))
    assert (running.servers["b"][DETECTOR].instances > 1, running.servers["b"][CLASSIFIER].instances) == (True, 1)


class TestInPlace:
    @staticmethod
    def adopted(folder: Path, port: int) -> Server:
        (folder / DETECTOR / "1").mkdir(parents=True)
        for name in ("config.pbtxt", "1/model.py"):
            (folder / DETECTOR / name).write_text("")
        for path in (folder / DETECTOR, *(folder / DETECTOR).rglob("*")):
            os.utime(path, (1.0, 1.0))
        return replace(server("a"), launched=False, grpc_address=Address("127.0.0.1", port), model_repository=str(folder))

    def test_a_file_that_changed_after_the_start_may_reload_the_model(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            adopted = self.adopted(tmp_path, listener.getsockname()[1])
            check_in_place(adopted, DETECTOR, ["instance_group"])
            with pytest.raises(ChangeRefusedError, match="it was loaded by hand with another input, parameters than its file has"):
                check_in_place(adopted, DETECTOR, ["input", "instance_group", "parameters"])
            (tmp_path / DETECTOR / "1" / "__pycache__").mkdir()
            with pytest.raises(
                ChangeRefusedError, match=r"/1(/__pycache__)? changed after the server started. Fix: restart the server once"
            ):
                check_in_place(adopted, DETECTOR)
            check_in_place(replace(adopted, launched=True), DETECTOR)
            elsewhere = replace(adopted, grpc_address=replace(adopted.grpc_address, host="192.0.2.1"))
            with pytest.raises(ChangeRefusedError, match="its process is not visible here"):
                check_in_place(elsewhere, DETECTOR)

    def test_what_cannot_be_seen_is_refused(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            adopted = self.adopted(tmp_path, listener.getsockname()[1])
        with pytest.raises(ChangeRefusedError, match="its process is not visible here"):
            check_in_place(adopted, DETECTOR)
        with pytest.raises(ChangeRefusedError, match="Fix: name the server's model_repository"):
            check_in_place(replace(adopted, model_repository=None), DETECTOR)


def test_the_start_of_a_listening_process_and_its_clients_are_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        start_s = listening_since_s(port)
        assert start_s is not None
        with socket.create_connection(("127.0.0.1", port)):
            assert not has_clients(identify(os.getpid()), (port,))  # this process's own connection is none of a client
    assert listening_since_s(port) is None


def test_the_first_routes_to_launched_servers_send_a_stateful_models_calls_to_one() -> None:
    async def work() -> None:
        bench = Bench()
        bench.control.stateful = {CLASSIFIER}
        bench.executor.submit(Plan("d", (launch("cpu:1", "one"), launch("cpu:2", "two"))))
        await bench.settled()
        both = {"one", "two"}
        tables = [table for table in bench.routes.tables if len(table.any) == len(both)]
        assert tables, "both serve"
        for table in bench.routes.tables:
            assert len(table.models[CLASSIFIER].targets) == 1
        assert {target.server for target in tables[-1].models[DETECTOR].targets} == both

    asyncio.run(work())


def test_a_stateful_model_loaded_into_a_second_server_gets_no_calls_there() -> None:
    async def work() -> None:
        lacking = server("b")
        lacking = replace(lacking, models={DETECTOR: lacking.models[DETECTOR]})
        bench = Bench(holder("a", CLASSIFIER), lacking)
        bench.control.stateful = {CLASSIFIER}
        bench.executor.submit(Plan("d", (action(ActionKind.RELOAD, "b", CLASSIFIER, after=1),)))
        await bench.settled()
        assert CLASSIFIER in bench.fleet.get("b").models
        assert [target.server for target in bench.routes.tables[-1].models[CLASSIFIER].targets] == ["a"]

    asyncio.run(work())


def test_a_server_whose_stateful_stage_has_its_calls_elsewhere_serves_the_rest_of_the_pipeline() -> None:
    lone = replace(holder("a", CLASSIFIER), models={CLASSIFIER: server("a").models[CLASSIFIER]})
    servers = with_pins((lone, holder("b", CLASSIFIER)))
    assert pins(servers) == {"a": (CLASSIFIER,)}
    (group,) = PolicyInput(snapshot(servers), estimate(5.0)).groups(config().pipelines[0], Placement.COLOCATED)
    assert [place.server.name for place in group.ready] == ["b"]
