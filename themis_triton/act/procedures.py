"""What each kind of action does, step by step, from its beginning to its end."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from themis_triton.act.actuators import Actuators
from themis_triton.act.backoff import Backoff
from themis_triton.act.fleet import Fleet
from themis_triton.act.fleet_routes import FleetRoutes
from themis_triton.act.launch_proofs import LaunchProofs
from themis_triton.act.launch_rests import LaunchRests
from themis_triton.core.action import Action, ActionKind
from themis_triton.core.errors import LaunchFailedError, ModelFailedError, ServerError, ThemisError
from themis_triton.core.fleet import Models, Phase, Server
from themis_triton.core.observation import OpenCall


class Procedures:
    """Carries out one action at a call; returns the detail of its success, and raises the errors of the ports.

    `open_calls`: changes under way, by the action's id, oldest first.
    """

    def __init__(
        self, actuators: Actuators, fleet: Fleet, routes: FleetRoutes, backoff: Backoff, rests: LaunchRests, proofs: LaunchProofs
    ) -> None:
        self.open_calls: dict[str, OpenCall] = {}
        self._actuators = actuators
        self._fleet = fleet
        self._routes = routes
        self._backoff = backoff
        self._rests = rests
        self._proofs = proofs

    async def change(self, action: Action) -> str:
        """Change the counts or the batching of a model of a running server."""
        if action.model is None or action.after is None:
            raise ThemisError(f"action {action.id} names no model or no state")
        server = self._fleet.get(action.server)
        if action.before is not None:
            now_s = self._actuators.clock.now_s()
            self.open_calls[action.id] = OpenCall(action.server, action.model, action.before, action.after, now_s)
        try:
            if action.kind is not ActionKind.SHRINK:
                await self._resize(server, {action.model: action.after})
            state = await self._actuators.control.change(server, action.model, action.after)
        except ServerError:
            await self._reread(action.server, action.model)
            raise
        finally:
            self.open_calls.pop(action.id, None)
        if action.kind is not ActionKind.SHRINK:  # a queue was emptied for the growth
            self._routes.route_again(action.server, action.model)
        if action.server in self._fleet:
            self._fleet.set_model(action.server, action.model, state)
            self._routes.reweigh()
            if action.kind is ActionKind.SHRINK:
                await self._resize(self._fleet.get(action.server))
        return ""

    async def _resize(self, server: Server, more: Models | None = None) -> None:
        """Give a launched server what its models need, once the changes under way and these have been made."""
        if server.launched and self._actuators.launcher is not None:
            models = dict(self._fleet.get(server.name).models) if server.name in self._fleet else dict(server.models)
            coming = [(call.model, call.after) for call in self.open_calls.values() if call.server == server.name]
            for model, state in (*coming, *(more or {}).items()):
                if model not in models or state.instances > models[model].instances:
                    models[model] = state
            await self._actuators.launcher.resize(server, models)

    async def reload(self, action: Action) -> str:
        """Load a model anew; on a server that Themis launched it gets requests only after its warm-up."""
        if action.model is None:
            raise ThemisError(f"action {action.id} names no model")
        server = self._fleet.get(action.server)
        if action.after is None:
            return await self._load_ensemble(server, action.model)
        with contextlib.suppress(ThemisError, OSError):  # what it fails is no worse off while it is loaded
            await self._routes.write()
        if server.launched:
            await self._actuators.required_launcher().add_model(server, action.model, action.after)
            await self._resize(server, {action.model: action.after})
        state = await self._actuators.control.reload(server, action.model, action.after)
        if server.launched:
            await self._actuators.required_launcher().warm_up(replace(server, models={action.model: state}))
        await self._admit(replace(server, models={**server.models, action.model: state}), {action.model: state})
        return ""

    async def _load_ensemble(self, server: Server, name: str) -> str:
        """Load an ensemble whose members the server has; it has no instances to warm up."""
        await self._actuators.required_launcher().add_ensembles(server)
        await self._actuators.control.load(server, name)
        await self._admit(server, {}, name)
        return ""

    async def _admit(self, server: Server, models: Models, *ensembles: str) -> None:
        """Route to what a running server has loaded."""
        inventory = await self._with_inventory(server, ensembles)
        if server.name in self._fleet:
            current = self._fleet.get(server.name)
            known = replace(current, models={**current.models, **models}, ready_models=inventory.ready_models, stateful=inventory.stateful)
            self._fleet.put(known)
            await self._routes.write()

    async def _with_inventory(self, server: Server, ensembles: Sequence[str] = ()) -> Server:
        """The server with the models that are READY there, and those of them with state between calls, whose calls go to one server.

        What becomes routable must have it: until then calls of a sequence would spread over all servers. ServerError if unreachable.
        """
        ready = await self._actuators.control.list_ready(server)
        names = ready if ready is not None else (*server.models, *ensembles)
        stateful = await self._actuators.control.list_stateful(server, names)
        return replace(server, ready_models=ready if ready is not None or not ensembles else tuple(sorted(names)), stateful=stateful)

    async def _reread(self, name: str, model: str) -> None:
        """Read the model's state from the server after a failure: the old state should still serve."""
        if name not in self._fleet:
            return
        states = await self._actuators.control.read_models(self._fleet.get(name), [model])
        if model in states and name in self._fleet:
            self._fleet.set_model(name, model, states[model])

    async def launch(self, action: Action) -> str:
        """Start a server on a slot, unless it runs already, and route to it once it has answered its warm-up."""
        launcher = self._actuators.required_launcher()
        if action.slot is None:
            raise ThemisError(f"action {action.id} names no slot")
        if action.server not in self._fleet:  # a server that an earlier daemon launched needs no second launch
            try:
                self._fleet.put(await launcher.launch(action.server, action.slot, action.models))
            except ModelFailedError as error:
                self._rests.failed(action.slot, error, await launcher.read_files_versions(action.models), action.server)
                raise
        await self._bring_up(action.server)
        return ""

    async def _bring_up(self, name: str) -> None:
        """Wait until the server is ready, warm it up, then route to it; a server that fails before is stopped and forgotten."""
        launcher = self._actuators.required_launcher()
        try:
            server = await launcher.wait_ready(self._fleet.get(name))
            self._fleet.put(replace(server, phase=Phase.WARMING))
            await launcher.warm_up(self._fleet.get(name))
            self._fleet.put(await self._with_inventory(self._fleet.get(name)))
        except Exception as error:
            if isinstance(error, ModelFailedError):
                failed = self._fleet.get(name)
                self._rests.failed(failed.slot or "", error, await launcher.read_files_versions(failed.models), name)
            try:
                await self._dispose(name)
            except (ThemisError, OSError) as stop_error:
                raise LaunchFailedError(f"{error}; nor could it be stopped: {stop_error}") from error
            raise
        server = self._fleet.move(name, Phase.SERVING)
        self._rests.succeeded(server.slot or "", server.models)
        self._proofs.began(server, self._actuators.clock.now_s())
        await self._routes.write()

    async def retire(self, action: Action) -> str:
        """Take a server out of the routes, let its requests end, and stop it."""
        before = self._fleet.get(action.server).phase
        self._fleet.move(action.server, Phase.DRAINING)
        idle = await self._take_down(action.server, serves=before is Phase.SERVING)
        return "" if idle else "requests were still in flight at the drain time-out"

    async def kill(self, action: Action) -> str:
        """End a server that is out of the routes and does not answer; one that answers again lives on."""
        server = self._fleet.get(action.server)
        if server.phase is not Phase.UNRESPONSIVE:
            return "it answers again"
        await self._actuators.required_launcher().kill(server)
        await self.forget(server)
        return ""

    async def _take_down(self, name: str, *, serves: bool) -> bool:
        """Take the server out of the routes, drain it, then stop it; False when the drain timed out.

        A server that may still be routed to is not stopped: if it `serves`, it keeps serving and retires once the routes can be written.
        """
        try:
            await self._routes.write()
        except Exception:
            if serves:
                self._fleet.move(name, Phase.SERVING)
            raise
        idle = await self._actuators.required_launcher().wait_idle(self._fleet.get(name))
        await self._dispose(name)
        return idle

    async def _dispose(self, name: str) -> None:
        server = self._fleet.move(name, Phase.STOPPING)
        await self._actuators.required_launcher().stop(server)
        await self.forget(server)

    async def forget(self, server: Server) -> None:
        """Remove a stopped server from the fleet, with its back-off and its connections."""
        self._fleet.remove(server.name)
        self._backoff.forget(server.name)
        self._proofs.ended(server)
        await self._actuators.control.forget(server)
