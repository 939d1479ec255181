"""Notices that the settings were edited while the sidecar runs: nothing of it is in force before `themis reload`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import ThemisError
from themis_triton.daemon.loop import Loop
from themis_triton.daemon.reload import settings_change
from themis_triton.settings.files import Stamp

EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """`read`: the settings as they are now; ThemisError for wrong ones. `stamp`: changes with each edit; raises nothing."""

    read: Callable[[], ThemisConfig]
    stamp: Callable[[], Stamp]


async def watch_settings(file: SettingsFile, loop: Loop) -> None:
    """Tell of edits until cancelled; the file is read only after one."""
    seen: Stamp | None = None
    while True:
        stamp = await asyncio.to_thread(file.stamp)
        if stamp != seen:
            loop.note_edit(await edit_notice(file.read, lambda: loop.components.config))
            seen = stamp
        await asyncio.sleep(EVERY_S)


async def edit_notice(read: Callable[[], ThemisConfig], in_force: Callable[[], ThemisConfig]) -> str | None:
    """What the edited settings say that is not in force; None where they say the same."""
    try:
        edited = await asyncio.to_thread(read)
    except (ThemisError, OSError) as error:
        fault = str(error).partition("\n")[0]
        return f"the settings file would be refused ({fault}); what was read before is in force. Fix: `themis validate`"
    return settings_change(in_force(), edited).notice
