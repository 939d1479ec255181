"""What is told of a crash: which requests were lost with the server, because one of them may be its cause."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from themis_triton.core.fleet import Server
from themis_triton.core.incident import BrokenRequest
from themis_triton.ports import CrashWitness

NAMED = 3
"""Requests that are named; the others are counted."""


@dataclass(slots=True)
class CrashReports:
    """Reports each crash; with a witness a moment later, once its requests are known."""

    tell: Callable[[Server, str], None]
    witness: CrashWitness | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _crashes_by_model: Counter[str] = field(default_factory=Counter)

    def report(self, server: Server, words: str) -> None:
        """Tell that the server crashed. Returns at once."""
        if self.witness is None:
            self.tell(server, words)
            return
        task = asyncio.create_task(self._tell_with_requests(self.witness, server, words))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _tell_with_requests(self, witness: CrashWitness, server: Server, words: str) -> None:
        requests = await witness.broken_requests(server)
        models = {request.model for request in requests if request.model is not None}
        self._crashes_by_model.update(models)
        self.tell(server, words + self._request_words(requests, models))

    def _request_words(self, requests: Sequence[BrokenRequest], models: set[str]) -> str:
        if not requests:
            return ""
        named = [f"{request.model or 'no model'} from {request.client}" for request in requests[:NAMED]]
        more = [f"{len(requests) - NAMED} more"] if len(requests) > NAMED else []
        counts = [f"{self._crashes_by_model[model]} crashes of servers that ran {model}" for model in sorted(models)]
        repeated = [words for model, words in zip(sorted(models), counts, strict=True) if self._crashes_by_model[model] > 1]
        return f"; requests were lost on it: {', '.join([*named, *more])}" + (f" ({', '.join(repeated)})" if repeated else "")
