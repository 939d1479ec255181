"""Loads a new pod's models over model control, with their planned states from the start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.core.errors import ChangeRefusedError, ModelFailedError
from themis_triton.core.fleet import ModelState, Server


async def load_models(control: TritonModelControl, server: Server, ensembles: Sequence[str]) -> dict[str, ModelState]:
    """Load the server's models and then its ensembles; returns what it runs. A model that is READY already stays as it is.

    Raises:
        ModelFailedError: Triton refuses a model, such as one that the pod's own repository lacks.
        ServerError: it does not answer.
    """
    running = await control.read_models(server, tuple(server.models))
    absent = {name: state for name, state in server.models.items() if name not in running}
    loaded = await asyncio.gather(*(_load(control, server, name, state) for name, state in absent.items()))
    for name in ensembles:
        try:
            await control.load(server, name)
        except ChangeRefusedError as error:
            raise _failure(server, name, error) from error
    return {**running, **dict(zip(absent, loaded, strict=True))}


async def _load(control: TritonModelControl, server: Server, model: str, state: ModelState) -> ModelState:
    try:
        return await control.reload(server, model, state)
    except ChangeRefusedError as error:
        raise _failure(server, model, error) from error


def _failure(server: Server, model: str, error: ChangeRefusedError) -> ModelFailedError:
    remedy = "see that the pod's own model repository has the model, and correct its files or its config.pbtxt"
    return ModelFailedError(f"server {server.name}: {error}", model, str(error), remedy)
