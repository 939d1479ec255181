"""Dispatching, compiled: routing of requests to servers and queues, and the batchers that take requests from them."""

from __future__ import annotations

from themis_triton.jit import flat_kernel, inlined, merged
from themis_triton.sim.service import noise, reschedule, settle
from themis_triton.sim.state import (
    CENTRAL,
    CORES,
    CURSOR,
    EXECUTIONS,
    FAILED,
    FAILURES,
    FIRST_TIMER_S,
    FREE,
    IN_FLIGHT,
    NONE,
    QUEUE_US,
    REQUEST,
    Engine,
)


@merged
def enqueue(e: Engine, request: int, model: int, now_s: float) -> None:
    """Put a request into a queue, and into a batch where an instance is free; it fails if no server can take it."""
    server = any_routed(e, model) if e.ints[CENTRAL] else least_loaded(e, model)
    if server == NONE:
        e.routes[model, IN_FLIGHT] -= 1
        e.routes[model, FAILURES] += 1
        whole = e.rows[request, REQUEST]
        if not e.failed[whole]:
            e.failed[whole] = FAILED
            e.ended_s[whole] = now_s
        return
    queue = queue_of(e, server, model)
    e.following[request] = NONE
    if e.length[queue] == e.deprioritized[queue]:
        e.head[queue] = request
    else:
        e.following[e.tail[queue]] = request
    e.tail[queue] = request
    e.length[queue] += 1
    if e.ints[CENTRAL]:
        offer(e, model, now_s)
    else:
        e.outstanding[server, model] += 1
        take(e, server, model, now_s)


@inlined
def next_request(e: Engine, queue: int) -> int:
    """The request that a queue, which is not empty, serves next."""
    request: int = e.head[queue] if e.length[queue] > e.deprioritized[queue] else e.deprioritized_head[queue]
    return request


@inlined
def oldest_s(e: Engine, queue: int) -> float:
    """The time at which the oldest request of a queue, which is not empty, entered it: a batcher's delay counts from there."""
    entered_s: float = e.entered_s[next_request(e, queue)]
    return min(entered_s, e.entered_s[e.deprioritized_head[queue]]) if e.deprioritized[queue] > 0 else entered_s


@flat_kernel
def deprioritize_late(e: Engine, queue: int, model: int, now_s: float) -> None:
    """Move requests that waited longer than `deprioritize_after_s` behind all others: served first, they would delay these too."""
    while e.length[queue] > e.deprioritized[queue] and now_s - e.entered_s[e.head[queue]] > e.deprioritize_after_s[model]:
        request = e.head[queue]
        e.head[queue] = e.following[request]
        e.following[request] = NONE
        if e.deprioritized[queue] == 0:
            e.deprioritized_head[queue] = request
        else:
            e.following[e.deprioritized_tail[queue]] = request
        e.deprioritized_tail[queue] = request
        e.deprioritized[queue] += 1


@flat_kernel
def pop(e: Engine, queue: int) -> int:
    """Take the next request out of its queue."""
    request = next_request(e, queue)
    if e.length[queue] > e.deprioritized[queue]:
        e.head[queue] = e.following[request]
    else:
        e.deprioritized_head[queue] = e.following[request]
        e.deprioritized[queue] -= 1
    e.length[queue] -= 1
    e.following[request] = NONE
    return request


@inlined
def queue_of(e: Engine, server: int, model: int) -> int:
    """The queue that feeds a server's model."""
    return model if e.ints[CENTRAL] else server * e.routed.shape[1] + model


@flat_kernel
def least_loaded(e: Engine, model: int) -> int:
    """The routed server with the fewest requests of the model for its weight, ties in turn; NONE when there is none."""
    rows = e.routed.shape[0]
    start, best, fewest, most = e.routes[model, CURSOR], NONE, 0, 1
    for offset in range(rows):
        server = start + offset
        if server >= rows:
            server -= rows
        # With the request that arrives, so that of idle servers the one with the largest weight is chosen.
        requests, weight = e.outstanding[server, model] + 1, e.routed[server, model]
        if weight and (best == NONE or requests * most < fewest * weight):
            best, fewest, most = server, requests, weight
    if best != NONE:
        e.routes[model, CURSOR] = best + 1 if best + 1 < rows else 0
    return best


@inlined
def any_routed(e: Engine, model: int) -> int:
    """The first routed server; NONE when there is none."""
    for server in range(e.routed.shape[0]):
        if e.routed[server, model]:
            return server
    return NONE


@inlined
def workers_of(e: Engine, row: int, model: int) -> int:
    """The number of batches that a row can serve at once for a model."""
    instances: int = e.instances[row, model]
    return min(1, instances) if e.ints[CORES] else instances


@flat_kernel
def free_row(e: Engine, server: int, model: int) -> int:
    """The row whose idle instance takes a server's next batch: that of the device with the fewest batches under way; NONE if all are busy.

    Triton wakes the instance that has waited longest. Under load that one is on the device where batches end soonest, so that both rules
    spread batches over the devices alike, and this one needs no record of each instance. The first of equal rows wins.
    """
    row, best, fewest = server, NONE, 0
    while row != NONE:
        if e.busy[row, model] < workers_of(e, row, model):
            under_way = e.under_way[e.device[row]]
            if best == NONE or under_way < fewest:
                best, fewest = row, under_way
        row = e.sibling[row]
    return best


@flat_kernel
def offer(e: Engine, model: int, now_s: float) -> None:
    """The central dispatcher: servers take waiting requests in their order."""
    for server in range(e.routed.shape[0]):
        waiting = e.length[model]
        if waiting == 0:
            return
        if e.routed[server, model] and e.busy[server, model] < workers_of(e, server, model):
            due_s = oldest_s(e, model) + e.delay_s[server, model]
            if waiting >= e.max_batch[server, model] or due_s <= now_s or due_s < e.timer_s[model]:
                take(e, server, model, now_s)


@merged
def fill(e: Engine, server: int, model: int, now_s: float) -> bool:
    """Triton's dynamic batcher: a free instance takes waiting requests, up to the largest batch; smaller ones wait for the queue delay.

    Returns whether a batch started; then `reschedule_rows` must follow.
    """
    if e.ints[CENTRAL] and not e.routed[server, model]:
        return False
    queue, row, started = queue_of(e, server, model), free_row(e, server, model), False
    while row != NONE and e.length[queue] > 0:
        deprioritize_late(e, queue, model, now_s)
        size = min(e.length[queue], e.max_batch[server, model])
        due_s = oldest_s(e, queue) + e.delay_s[server, model]
        if size < e.max_batch[server, model] and due_s > now_s:
            e.timer_s[queue] = min(e.timer_s[queue], due_s)
            e.floats[FIRST_TIMER_S] = min(e.floats[FIRST_TIMER_S], due_s)
            break
        start_batch(e, row, model, queue, size, now_s)
        row, started = free_row(e, server, model), True
    if row != NONE and e.length[queue] == 0:
        e.idle_s[server, model] = now_s
    return started


@merged
def take(e: Engine, server: int, model: int, now_s: float) -> None:
    """`fill`, then update the next ends on the server's devices."""
    if fill(e, server, model, now_s):
        reschedule_rows(e, server, now_s)


@flat_kernel
def reschedule_rows(e: Engine, server: int, now_s: float) -> None:
    """Find the next ends on those devices of a server whose progress is settled until now; on the others nothing changed."""
    row = server
    while row != NONE:
        if e.settled_s[e.device[row]] == now_s:
            reschedule(e, e.device[row], now_s)
        row = e.sibling[row]


@flat_kernel
def start_batch(e: Engine, row: int, model: int, queue: int, size: int, now_s: float) -> None:
    """Move the queue's first requests into a batch on the row's device; `reschedule` must follow."""
    device, server = e.device[row], e.owner[row]
    settle(e, device, now_s)
    e.ints[FREE] -= 1
    batch = e.free[e.ints[FREE]]
    last = pop(e, queue)
    e.batch_head[batch] = last
    waited_s = now_s - e.entered_s[last]
    for _ in range(size - 1):
        e.following[last] = pop(e, queue)
        last = e.following[last]
        waited_s += now_s - e.entered_s[last]
    e.batch_row[batch, 0], e.batch_row[batch, 1] = row, model
    e.batch_size[batch], e.batch_left[batch], e.batch_start_s[batch] = size, 1.0, now_s
    e.batch_factor[batch] = noise(e)
    e.running[device, e.under_way[device]] = batch
    e.under_way[device] += 1
    e.busy[row, model] += 1
    e.served[server, model, QUEUE_US] += 1e6 * waited_s
    e.served[server, model, EXECUTIONS] += 1.0


@flat_kernel
def remove_batch(e: Engine, batch: int) -> None:
    """Remove a batch from its device, whose progress is settled, and from its server's counts."""
    row, model = e.batch_row[batch, 0], e.batch_row[batch, 1]
    device = e.device[row]
    index = 0
    while e.running[device, index] != batch:
        index += 1
    e.under_way[device] -= 1
    e.running[device, index] = e.running[device, e.under_way[device]]
    e.busy[row, model] -= 1
    if not e.ints[CENTRAL]:
        e.outstanding[e.owner[row], model] -= e.batch_size[batch]
    e.free[e.ints[FREE]] = batch
    e.ints[FREE] += 1


@flat_kernel
def enqueue_again(e: Engine, request: int, model: int, now_s: float) -> None:
    """Enqueue each request of a chain again."""
    while request != NONE:
        following = e.following[request]
        enqueue(e, request, model, now_s)
        request = following
