"""The request-level simulation between two control events, compiled.

Requests are rows of arrays, and so are the stages of those whose stages run side by side; a queue and a running batch are chains of rows
through `following`. Three events can be next: an arrival (or a row that crossed the proxy to its next stage), the end of a batch, or
the end of a batcher's delay. Batches on one device share it: each progresses at the speed of `l(b, k)` for the k that are busy at that
moment (processor sharing, exact). Whenever k changes, the progress of the device's batches is settled and its first end is computed again.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from themis_triton.jit import (
    FLOATS,
    FLOATS_2D,
    FLOATS_3D,
    INTEGER,
    INTS,
    INTS_2D,
    INTS_3D,
    REAL,
    SEEDS,
    Entry,
    Group,
    flat_kernel,
    inlined,
    merged,
)
from themis_triton.sim.dispatch import enqueue, enqueue_again, fill, offer, pop, queue_of, remove_batch, reschedule_rows, take
from themis_triton.sim.service import bucket, index_of_smallest, reschedule, settle, uniform
from themis_triton.sim.state import (
    ARRIVALS,
    AWAITED,
    BY_SIZE,
    CALLER,
    CENTRAL,
    COMPUTE_US,
    CROSSING_HEAD,
    CROSSING_TAIL,
    EVENTS,
    FIRST_DEVICE,
    FIRST_ROW,
    FIRST_TIMER_S,
    HOP_S,
    IN_FLIGHT,
    INFERENCES,
    LEFT,
    LIMIT_RPS,
    MOST_TOKENS,
    NEXT,
    NEXT_CALL,
    NONE,
    NOW_S,
    PENDING,
    REFUSALS,
    REFUSED,
    REQUEST,
    SLOWDOWN,
    STAGE,
    SUCCESS,
    TOKENS,
    TOKENS_S,
    Engine,
)
from themis_triton.solver.surface import IntArray

_ARRIVE, _CROSS, _END, _EXPIRE = range(4)


@flat_kernel
def advance(e: Engine, until_s: float) -> None:
    """Process all events until a time; the next call continues from there."""
    while True:
        request, due_s, kind = e.ints[NEXT], np.inf, _ARRIVE
        if request < e.arrival_s.size:
            due_s = e.arrival_s[request] + e.floats[HOP_S]
        crossing = e.ints[CROSSING_HEAD]
        if crossing != NONE and e.entered_s[crossing] <= due_s:
            due_s, kind = e.entered_s[crossing], _CROSS
        if e.floats[FIRST_TIMER_S] <= due_s:
            due_s, kind = e.floats[FIRST_TIMER_S], _EXPIRE
        if e.end_s[e.ints[FIRST_DEVICE]] <= due_s:
            due_s, kind = e.end_s[e.ints[FIRST_DEVICE]], _END
        if due_s > until_s or due_s == np.inf:
            break
        e.ints[EVENTS] += 1
        row = NONE
        if kind == _ARRIVE:
            e.ints[NEXT] += 1
            row = arrive(e, request, due_s)
        elif kind == _CROSS:
            e.ints[CROSSING_HEAD], row = e.following[crossing], crossing
        elif kind == _END:
            end_batch(e, e.ints[FIRST_DEVICE], due_s)
        else:
            expire(e, due_s)
        call_any(e, row, due_s)
    e.floats[NOW_S] = max(e.floats[NOW_S], until_s)


@merged
def enter(e: Engine, row: int, now_s: float) -> None:
    """A row reaches the proxy for its present stage."""
    model = e.chains[e.pipeline[e.rows[row, REQUEST]], e.rows[row, STAGE]]
    e.entered_s[row] = now_s
    e.routes[model, ARRIVALS] += 1
    if e.limits[model, LIMIT_RPS] < np.inf and not admits(e, model, now_s):
        refuse(e, row, model, now_s)
        return
    e.routes[model, IN_FLIGHT] += 1
    enqueue(e, row, model, now_s)


@flat_kernel
def admits(e: Engine, model: int, now_s: float) -> bool:
    """Take a token of the model's limit; tokens come back continuously."""
    gained = (now_s - e.limits[model, TOKENS_S]) * e.limits[model, LIMIT_RPS]
    tokens = min(e.limits[model, MOST_TOKENS], e.limits[model, TOKENS] + gained)
    e.limits[model, TOKENS_S] = now_s
    e.limits[model, TOKENS] = tokens - 1.0 if tokens >= 1.0 else tokens
    return bool(tokens >= 1.0)


@flat_kernel
def refuse(e: Engine, row: int, model: int, now_s: float) -> None:
    """End a row's request at once."""
    e.routes[model, REFUSALS] += 1
    whole = e.rows[row, REQUEST]
    if not e.failed[whole]:
        e.failed[whole] = REFUSED
        e.ended_s[whole] = now_s


@inlined
def arrive(e: Engine, request: int, now_s: float) -> int:
    """A request reaches the proxy for all stages that wait for none; one that makes no call has ended.

    Returns the row that makes its calls now, where its stages are called one after the other.
    """
    row, first = NONE, e.rows[request, FIRST_ROW]
    if first == NONE and begins(e, request):
        row = request
    elif first == NONE:
        e.ended_s[request] = now_s
    else:
        for s in range(e.rows[request, LEFT]):
            if waits_for_none(e, e.pipeline[request], s):
                draw_calls(e, first + s)
                call(e, first + s, now_s)
    return row


@flat_kernel
def waits_for_none(e: Engine, pipeline: int, stage: int) -> bool:
    """Whether a stage of a graph begins with the request."""
    for s in range(e.follows.shape[1]):  # noqa: SIM110 - a generator does not compile
        if e.follows[pipeline, s, stage]:
            return False
    return True


@flat_kernel
def spread_calls(mean: float, most: int, quantile: float) -> int:
    """The quantile of the numbers of calls with this mean and maximum: all alike from a least one on, or else 0 or 1 more often."""
    low = round(2.0 * mean - most)
    if low >= 1:
        return int(low + quantile * (most - low + 1))
    usual = 1 if mean >= 1.0 else 0
    others = 2.0 * (mean - usual) / (most + 1.0 - 2.0 * usual)  # the share of requests whose number is one of 1 to `most`
    if quantile < 1.0 - others:
        return usual
    return int(1 + (quantile - 1.0 + others) / others * most)


@flat_kernel
def draw_calls(e: Engine, row: int) -> int:
    """Set and return how many calls a row makes of its present stage; where the mean is not whole, one of the two numbers next to it.

    Where requests differ, one that makes many calls of a stage makes many of the others too.
    """
    pipeline, stage = e.pipeline[e.rows[row, REQUEST]], e.rows[row, STAGE]
    mean, most = e.per_request[pipeline, stage], e.most_calls[pipeline, stage]
    calls = int(mean)
    if most > math.ceil(mean):
        hashed = 43758.5453 * math.sin(12.9898 * (e.rows[row, REQUEST] + 1.0))
        calls = spread_calls(mean, most, hashed - math.floor(hashed))
    elif mean > calls and uniform(e) <= mean - calls:
        calls += 1
    e.rows[row, PENDING] = calls
    return calls


@flat_kernel
def begins(e: Engine, row: int) -> bool:
    """Whether a row makes calls of its present stage or a later one of its chain; it is then at the first such stage."""
    pipeline = e.pipeline[e.rows[row, REQUEST]]
    while e.chains[pipeline, e.rows[row, STAGE]] != NONE:
        if draw_calls(e, row) > 0:
            return True
        e.rows[row, STAGE] += 1
    return False


@merged
def call_any(e: Engine, row: int, now_s: float) -> None:
    """`call` for a row, if there is one. A single call is made here, because most are."""
    if row == NONE:
        return
    if e.rows[row, PENDING] == 1:
        enter(e, row, now_s)
    else:
        call(e, row, now_s)


@flat_kernel
def call(e: Engine, row: int, now_s: float) -> None:
    """A row reaches the proxy for its present stage: with one call, or with all that it makes at once. Without any, its stage ends."""
    request, calls = e.rows[row, REQUEST], e.rows[row, PENDING]
    if calls == 0:
        end_stage(e, row, now_s)
        return
    at_once = calls > 1 and not e.sequential[e.pipeline[request], e.rows[row, STAGE]]
    for _ in range(calls if at_once else 1):
        one = row
        if at_once:
            one = e.ints[NEXT_CALL]
            e.ints[NEXT_CALL] += 1
            e.rows[one, REQUEST], e.rows[one, STAGE], e.rows[one, CALLER] = request, e.rows[row, STAGE], row
        enter(e, one, now_s)


@merged
def end_batch(e: Engine, device: int, now_s: float) -> None:
    """End the device's first batch: answer its requests or send them on, and let its instance take the next."""
    batch = e.first[device]
    server, model = e.owner[e.batch_row[batch, 0]], e.batch_row[batch, 1]
    settle(e, device, now_s)
    remove_batch(e, batch)
    size = e.batch_size[batch]
    e.served[server, model, SUCCESS] += size
    e.served[server, model, INFERENCES] += size
    e.served[server, model, COMPUTE_US] += 1e6 * size * (now_s - e.batch_start_s[batch])
    e.served[server, model, BY_SIZE + 2 * size - 2] += 1.0
    e.served[server, model, BY_SIZE + 2 * size - 1] += 1e6 * (now_s - e.batch_start_s[batch])
    e.routes[model, IN_FLIGHT] -= size
    request = e.batch_head[batch]
    while request != NONE:
        following = e.following[request]
        e.histogram[model, bucket(e.bounds_s, now_s - e.entered_s[request])] += 1
        leave(e, request, now_s)
        request = following
    fill(e, server, model, now_s)
    reschedule_rows(e, server, now_s)


@inlined
def leave(e: Engine, row: int, now_s: float) -> None:
    """A row has an answer. After its stage's last one, what waited for this stage alone follows after a proxy hop, or the request ends."""
    request, caller = e.rows[row, REQUEST], e.rows[row, CALLER]
    maker = row if caller == NONE else caller
    e.rows[maker, PENDING] -= 1
    if e.rows[maker, PENDING] > 0:
        if caller == NONE:
            cross(e, row, now_s)  # its next call in turn
    elif e.rows[request, FIRST_ROW] != NONE:
        end_stage(e, maker, now_s)
    else:
        e.rows[maker, STAGE] += 1
        if begins(e, maker):
            cross(e, maker, now_s)
        else:
            e.ended_s[request] = now_s


@flat_kernel
def end_stage(e: Engine, row: int, now_s: float) -> None:
    """A stage of several side by side has ended."""
    request = e.rows[row, REQUEST]
    pipeline, first = e.pipeline[request], e.rows[request, FIRST_ROW]
    e.rows[request, LEFT] -= 1
    if e.rows[request, LEFT] == 0:
        e.ended_s[request] = now_s
    for s in range(e.follows.shape[1]):
        if e.follows[pipeline, e.rows[row, STAGE], s]:
            e.rows[first + s, AWAITED] -= 1
            if e.rows[first + s, AWAITED] == 0:
                draw_calls(e, first + s)
                cross(e, first + s, now_s)


@inlined
def cross(e: Engine, row: int, now_s: float) -> None:
    """A row enters its stage after a proxy hop."""
    e.entered_s[row] = now_s + e.floats[HOP_S]
    e.following[row] = NONE
    if e.ints[CROSSING_HEAD] == NONE:
        e.ints[CROSSING_HEAD] = row
    else:
        e.following[e.ints[CROSSING_TAIL]] = row
    e.ints[CROSSING_TAIL] = row


@inlined
def expire(e: Engine, now_s: float) -> None:
    """A batcher's delay ended: the waiting requests form a batch."""
    queue = index_of_smallest(e.timer_s)
    e.timer_s[queue] = np.inf
    e.floats[FIRST_TIMER_S] = e.timer_s[index_of_smallest(e.timer_s)]
    models = e.routed.shape[1]
    if e.ints[CENTRAL]:
        offer(e, queue, now_s)
    else:
        take(e, queue // models, queue % models, now_s)


@flat_kernel
def configure(e: Engine, server: int, model: int, instances: IntArray, max_batch: int, delay_s: float) -> None:
    """Change a model's instances on each row of a server, its batch limit and its delay.

    Running batches keep their size and continue at the new speed.
    """
    now_s, row, number = e.floats[NOW_S], server, 0
    e.max_batch[server, model], e.delay_s[server, model] = max_batch, delay_s
    while row != NONE:
        settle(e, e.device[row], now_s)
        e.instances[row, model] = instances[number]
        row, number = e.sibling[row], number + 1
    fill(e, server, model, now_s)
    reschedule_rows(e, server, now_s)


@flat_kernel
def slow_down(e: Engine, factor: float) -> None:
    """Multiply all service times by a factor from now on."""
    for device in range(e.end_s.size):
        settle(e, device, e.floats[NOW_S])
    e.floats[SLOWDOWN] = factor
    for device in range(e.end_s.size):
        reschedule(e, device, e.floats[NOW_S])


@flat_kernel
def evict(e: Engine, server: int) -> None:
    """End a server that left the routes: the proxy sends its requests to the others, from the start of the stage."""
    now_s, row = e.floats[NOW_S], server
    while row != NONE:
        device = e.device[row]
        settle(e, device, now_s)
        for index in range(e.under_way[device] - 1, -1, -1):
            batch = e.running[device, index]
            if e.batch_row[batch, 0] == row:
                remove_batch(e, batch)
                enqueue_again(e, e.batch_head[batch], e.batch_row[batch, 1], now_s)
        reschedule(e, device, now_s)
        for model in range(e.routed.shape[1]):
            e.instances[row, model] = 0
        row = e.sibling[row]
    for model in range(e.routed.shape[1]):
        queue = queue_of(e, server, model)
        if not e.ints[CENTRAL] and e.length[queue] > 0:
            e.outstanding[server, model] = 0
            while e.length[queue] > 0:
                enqueue_again(e, pop(e, queue), model, now_s)


_ENGINE = types.NamedTuple(  # type: ignore[no-untyped-call]
    (
        *(
            FLOATS_3D,
            INTS_2D,
            FLOATS_2D,
            INTS_2D,
            INTS_2D,
            FLOATS,
            INTS,
            INTS_2D,
            INTS,
            FLOATS,
            FLOATS,
            INTS,
            INTS_3D,
        ),  # surfaces, chains and requests
        *(INTS, INTS, INTS, INTS_2D, INTS_2D, INTS_2D, FLOATS_2D, INTS_2D, INTS_2D, FLOATS_2D),  # servers
        *(INTS, INTS, INTS, INTS, INTS, INTS, FLOATS, FLOATS),  # queues
        *(INTS_2D, INTS, INTS, FLOATS, FLOATS, FLOATS, FLOATS, INTS),  # batches
        *(INTS_2D, INTS, FLOATS, FLOATS, INTS),  # devices
        *(FLOATS_3D, INTS_2D, FLOATS_2D, FLOATS, INTS_2D, INTS, FLOATS, SEEDS),  # counters and scalars
    ),
    Engine,
)
ENTRIES = (
    Entry(Group.SIMULATOR, advance, (_ENGINE, REAL)),
    Entry(Group.SIMULATOR, evict, (_ENGINE, INTEGER)),
    Entry(Group.SIMULATOR, configure, (_ENGINE, INTEGER, INTEGER, INTS, INTEGER, REAL)),
    Entry(Group.SIMULATOR, slow_down, (_ENGINE, REAL)),
    Entry(Group.SIMULATOR, offer, (_ENGINE, INTEGER, REAL)),
)
