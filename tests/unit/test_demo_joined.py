"""When the launched servers of a demo began to serve, from the statuses of its seconds."""

from __future__ import annotations

from tests.unit.samples import server
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.status import Status
from themis_triton.demo.run import joined_at_s

ADOPTED = server("adopted", launched=False)


def status(*servers: Server) -> Status:
    return Status(1, "0", 1, 0.0, "active", "themis", paused=False, sentence="", servers=(ADOPTED, *servers))


def test_a_launched_server_counts_once_from_the_second_in_which_it_first_serves() -> None:
    starting, serving = server("a", phase=Phase.WARMING), server("a")
    leaving, other = server("a", phase=Phase.DRAINING), server("b")
    seconds = [status(), status(starting), status(serving), status(serving, other), status(leaving, other), status(serving, other)]
    assert joined_at_s(seconds) == (2, 3)


def test_servers_that_join_in_the_same_second_are_two() -> None:
    assert joined_at_s([status(), status(server("a"), server("b"))]) == (1, 1)
    assert joined_at_s([status()]) == ()
