"""The faults of chaos: each is made, held for a while where it lasts, and mended where chaos itself has to."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import sqlite3
from collections.abc import Awaitable, Callable, Mapping

import httpx
import psutil
from chaos_world import STAGES, World

from themis_triton.adapters.process_end import wait_for_exit
from themis_triton.adapters.process_identity import identify
from themis_triton.adapters.store.paths import journal_path
from themis_triton.adapters.triton.client import KEY_HEADER, new_client

Fault = Callable[[World], Awaitable[None]]
ENVOY_BACK_S, ENVOY_POLL_S = 30.0, 0.005
SEEN_LATE_S = 0.5
"""By how much the end of a process may be seen late on a busy machine."""


async def server_killed(world: World) -> None:
    """SIGKILL of a launched server."""
    server = await world.victim()
    if server is not None and server.process is not None:
        os.kill(server.process.pid, signal.SIGKILL)


async def server_hung(world: World) -> None:
    """SIGSTOP of a launched server: it accepts connections and answers nothing, until Themis kills it."""
    server = await world.victim()
    if server is not None and server.process is not None:
        os.kill(server.process.pid, signal.SIGSTOP)


async def models_unloaded(world: World) -> None:
    """Another client unloads a model, on a launched server or on the adopted one."""
    server = world.random.choice([each for each in (await world.victim(), world.adopted) if each is not None])
    client = new_client(server.grpc_address)
    try:
        await client.unload_model(world.random.choice(STAGES), headers={KEY_HEADER: server.model_control_key or ""})
    finally:
        await client.close()


async def repository_broken(world: World) -> None:
    """A server is needed while the repository has lost a model."""
    model = world.repository / world.random.choice(STAGES)
    aside = model.with_name(f".{model.name}")
    model.rename(aside)
    try:
        await server_killed(world)
        await asyncio.sleep(world.random.uniform(3.0, 6.0))
    finally:
        aside.rename(model)


async def _until_envoy_is_back(world: World, fault: str, began_s: float) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < began_s + ENVOY_BACK_S:
        if await world.envoy_answers():
            break
        await asyncio.sleep(ENVOY_POLL_S)
    world.envoy_deaths.append((fault, began_s, loop.time()))


async def _envoy_signalled(world: World, fault: str, number: signal.Signals) -> None:
    envoy = await asyncio.to_thread(world.envoy)
    if envoy is not None:
        identity, began_s = identify(envoy.pid), asyncio.get_running_loop().time()
        envoy.send_signal(number)
        if number == signal.SIGKILL:
            await wait_for_exit(identity)
        else:
            await asyncio.sleep(0.05)
        await _until_envoy_is_back(world, fault, began_s)


async def envoy_killed(world: World) -> None:
    """SIGKILL of Envoy."""
    await _envoy_signalled(world, "envoy_killed", signal.SIGKILL)


async def envoy_hung(world: World) -> None:
    """SIGSTOP of Envoy."""
    await _envoy_signalled(world, "envoy_hung", signal.SIGSTOP)


async def envoy_drained(world: World) -> None:
    """Envoy's listeners are closed by a call of its admin socket."""
    began_s = asyncio.get_running_loop().time()
    transport = httpx.AsyncHTTPTransport(uds=str(world.state / "envoy" / "admin" / "envoy.sock"))
    async with httpx.AsyncClient(transport=transport, timeout=5.0) as client:
        await client.post("http://envoy/drain_listeners")
    await _until_envoy_is_back(world, "envoy_drained", began_s)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def envoy_files_lost(world: World) -> None:
    """Envoy's directory is deleted, so that it is started again."""
    began_s = asyncio.get_running_loop().time()
    before = await asyncio.to_thread(world.envoy)
    await asyncio.to_thread(shutil.rmtree, world.state / "envoy", ignore_errors=True)
    deadline_s = began_s + ENVOY_BACK_S
    while before is not None and _runs(before) and asyncio.get_running_loop().time() < deadline_s:
        began_s = asyncio.get_running_loop().time()  # It serves until it is killed.
        await asyncio.sleep(0.01)
    await _until_envoy_is_back(world, "envoy_files_lost", began_s - SEEN_LATE_S)


async def sidecar_killed(world: World) -> None:
    """SIGKILL of the sidecar, which is started again."""
    world.kill_sidecar()
    await asyncio.sleep(world.random.uniform(0.2, 3.0))
    world.start_sidecar()
    await world.until(lambda status: bool(status["tick"]), 60.0)


async def both_killed(world: World) -> None:
    """SIGKILL of the sidecar and of a server, which no one sees end."""
    world.kill_sidecar()
    await server_killed(world)
    launched = await asyncio.to_thread(world.launched)
    if launched and launched[0].process is not None:
        os.kill(launched[0].process.pid, signal.SIGKILL)
    await asyncio.sleep(world.random.uniform(0.2, 2.0))
    world.start_sidecar()
    await world.until(lambda status: bool(status["tick"]), 60.0)


async def clock_stepped(world: World) -> None:
    """The sidecar starts anew with a clock that is up to two hours wrong."""
    world.clock_file.write_text(str(world.random.uniform(-7200.0, 7200.0)), encoding="utf-8")
    await sidecar_killed(world)


async def metrics_dead(world: World) -> None:
    """The adopted server's metrics port refuses connections."""
    await world.door.close()
    try:
        await asyncio.sleep(world.random.uniform(4.0, 8.0))
    finally:
        await world.door.open()


async def journal_locked(world: World) -> None:
    """Another program holds the journal."""
    seconds = world.random.uniform(4.0, 8.0)
    db = await asyncio.to_thread(sqlite3.connect, journal_path(world.state), 5.0, isolation_level=None, check_same_thread=False)
    try:
        await asyncio.to_thread(db.execute, "begin exclusive")
        await asyncio.sleep(seconds)
        await asyncio.to_thread(db.execute, "rollback")
    finally:
        db.close()


async def disk_full(world: World) -> None:
    """No file of the sidecar can grow."""
    if world.process is None:
        return
    process = psutil.Process(world.process.pid)
    _, hard = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        await asyncio.sleep(world.random.uniform(3.0, 6.0))
    finally:
        process.rlimit(resource.RLIMIT_FSIZE, (hard, hard))


async def settings_corrupted(world: World) -> None:
    """The settings are garbage while they are read again."""
    world.settings_file.write_text(world.random.choice(("", "{", "models: 3\n", "\0\0", "policy: {tick_s: -1}\n")), encoding="utf-8")
    world.signal_sidecar(signal.SIGHUP)
    await asyncio.sleep(2.0)
    world.write_settings()
    world.signal_sidecar(signal.SIGHUP)


async def device_slow(world: World) -> None:
    """All models take longer than their profiles say."""
    beside = world.scale_file.with_suffix(".new")
    beside.write_text(json.dumps({"*": world.random.uniform(1.2, 1.6)}), encoding="utf-8")
    beside.replace(world.scale_file)
    try:
        await asyncio.sleep(world.random.uniform(4.0, 8.0))
    finally:
        world.scale_file.unlink()


FAULTS: Mapping[str, Fault] = {
    fault.__name__: fault
    for fault in (
        server_killed,
        server_hung,
        models_unloaded,
        repository_broken,
        envoy_killed,
        envoy_hung,
        envoy_drained,
        envoy_files_lost,
        sidecar_killed,
        both_killed,
        clock_stepped,
        metrics_dead,
        journal_locked,
        disk_full,
        settings_corrupted,
        device_slow,
    )
}
