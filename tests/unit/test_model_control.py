"""A load call that stays open: the model control waits as long as the server answers, and no longer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.unit.kserve_server import serving
from tests.unit.samples import DETECTOR, server
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.core.address import Address
from themis_triton.core.errors import ChangeRefusedError, ServerError
from themis_triton.core.fleet import ModelState

ANSWER_TIMEOUT_S = 0.05
WAIT_S = 10.0


@dataclass
class Triton:
    """A server whose loads return once `returns` is set, refused where `refuses` is; it tells that it lives once `answers` is set."""

    instances: int = 1
    refuses: bool = False
    returns: asyncio.Event = field(default_factory=asyncio.Event)
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    loads: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def live(self, _request: Any, _context: Any) -> Any:
        self.asked.release()
        await self.answers.wait()
        return pb.ServerLiveResponse(live=True)

    async def ready(self, _request: Any, _context: Any) -> Any:
        return pb.ModelReadyResponse(ready=True)

    async def config(self, _request: Any, _context: Any) -> Any:
        answer = pb.ModelConfigResponse()
        answer.config.name, answer.config.max_batch_size = DETECTOR, 8
        answer.config.dynamic_batching.SetInParent()
        answer.config.instance_group.add(count=self.instances)
        return answer

    async def load(self, _request: Any, context: Any) -> Any:
        self.loads += 1
        try:
            await self.returns.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.refuses:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "out of memory")
        self.instances = 4
        return pb.RepositoryModelLoadResponse()


@asynccontextmanager
async def changing(triton: Triton) -> AsyncIterator[asyncio.Task[ModelState]]:
    """The change to four instances on a served Triton, under way."""
    methods = {
        "ServerLive": (triton.live, pb.ServerLiveRequest, pb.ServerLiveResponse),
        "ModelReady": (triton.ready, pb.ModelReadyRequest, pb.ModelReadyResponse),
        "ModelConfig": (triton.config, pb.ModelConfigRequest, pb.ModelConfigResponse),
        "RepositoryModelLoad": (triton.load, pb.RepositoryModelLoadRequest, pb.RepositoryModelLoadResponse),
    }
    async with serving(methods) as port:
        control = TritonModelControl(ANSWER_TIMEOUT_S)
        target = replace(server("a"), grpc_address=Address("127.0.0.1", port), model_repository=None)
        change = asyncio.create_task(control.change(target, DETECTOR, ModelState(4, 8, 0)))
        try:
            yield change
        finally:
            change.cancel()
            await asyncio.gather(change, return_exceptions=True)
            await control.close()


async def wait_asked(triton: Triton, times: int) -> None:
    async with asyncio.timeout(WAIT_S):
        for _ in range(times):
            await triton.asked.acquire()


def test_a_call_stays_open_beyond_its_time_while_the_server_answers_and_is_not_repeated() -> None:
    async def run() -> None:
        triton = Triton()
        triton.answers.set()
        async with changing(triton) as change:
            await wait_asked(triton, 3)
            assert not change.done()
            triton.returns.set()
            assert (await asyncio.wait_for(change, WAIT_S)).instances == 4
        assert triton.loads == 1

    asyncio.run(run())


def test_a_server_that_no_longer_answers_fails_the_open_call() -> None:
    async def run() -> None:
        triton = Triton()
        async with changing(triton) as change:
            with pytest.raises(ServerError, match=r"server a at 127.0.0.1:.* did not answer"):
                await asyncio.wait_for(change, WAIT_S)

    asyncio.run(run())


def test_a_refusal_after_a_long_call_is_a_refusal() -> None:
    async def run() -> None:
        triton = Triton(refuses=True)
        triton.answers.set()
        async with changing(triton) as change:
            await wait_asked(triton, 2)
            triton.returns.set()
            with pytest.raises(ChangeRefusedError, match="out of memory"):
                await asyncio.wait_for(change, WAIT_S)

    asyncio.run(run())


def test_a_cancelled_change_leaves_no_call_behind() -> None:
    async def run() -> None:
        triton = Triton()
        triton.answers.set()
        async with changing(triton) as change:
            await wait_asked(triton, 1)
            change.cancel()
            await asyncio.wait_for(triton.cancelled.wait(), WAIT_S)
        assert change.cancelled()
        assert triton.instances == 1

    asyncio.run(run())


def test_the_models_of_a_large_repository_are_read_a_few_at_a_time() -> None:
    async def run() -> None:
        triton, names = Triton(), [f"model-{number}" for number in range(20)]
        entered, may_answer, counts = asyncio.Semaphore(0), asyncio.Event(), [0]

        async def ready(request: Any, context: Any) -> Any:
            counts[0] += 1
            entered.release()
            await may_answer.wait()
            return await triton.ready(request, context)

        methods = {
            "ModelReady": (ready, pb.ModelReadyRequest, pb.ModelReadyResponse),
            "ModelConfig": (triton.config, pb.ModelConfigRequest, pb.ModelConfigResponse),
            "ServerLive": (triton.live, pb.ServerLiveRequest, pb.ServerLiveResponse),
        }
        triton.answers.set()
        async with serving(methods) as port, asyncio.timeout(WAIT_S):
            control = TritonModelControl()
            target = replace(server("a"), grpc_address=Address("127.0.0.1", port))
            reading = asyncio.create_task(control.read_models(target, names))
            await entered.acquire()
            assert await control.answers(target)  # what was asked before it has arrived
            assert counts[0] <= 4
            may_answer.set()
            assert sorted(await reading) == sorted(names)
            await control.close()

    asyncio.run(run())


class TestStateful:
    """Models that are loaded with another configuration while they stay READY."""

    NAMES = (DETECTOR, *(f"other-{number}" for number in range(7)))

    def listings(self, rounds: int, changed: str, *, named: bool) -> list[tuple[str, ...]]:
        """What each round finds, `changed` keeping state from the second one on; `named`: the settings name it."""
        stateful = set[str]()
        self.asked = Counter[str]()

        async def ready(request: Any, _context: Any) -> Any:
            self.asked[request.name] += 1
            return pb.ModelReadyResponse(ready=True)

        async def config(request: Any, _context: Any) -> Any:
            answer = pb.ModelConfigResponse()
            answer.config.name = request.name
            answer.config.instance_group.add(count=1)
            if request.name in stateful:
                answer.config.sequence_batching.SetInParent()
            return answer

        async def scenario() -> list[tuple[str, ...]]:
            methods = {
                "ModelReady": (ready, pb.ModelReadyRequest, pb.ModelReadyResponse),
                "ModelConfig": (config, pb.ModelConfigRequest, pb.ModelConfigResponse),
            }
            found, control = list[tuple[str, ...]](), TritonModelControl()
            async with serving(methods) as port:
                target = replace(server("a"), grpc_address=Address("127.0.0.1", port))
                for _ in range(rounds):
                    await control.read_models(target, [DETECTOR] if named else [])
                    found.append(await control.list_stateful(target, self.NAMES))
                    stateful.add(changed)
                await control.close()
            return found

        return asyncio.run(scenario())

    def test_a_named_model_is_known_at_the_next_reading(self) -> None:
        assert self.listings(2, DETECTOR, named=True) == [(), (DETECTOR,)]
        assert self.asked[DETECTOR] == 2, "once a round"

    def test_each_other_model_is_read_again_in_turn(self) -> None:
        for name in self.NAMES:
            assert self.listings(3, name, named=False)[2] == (name,)
