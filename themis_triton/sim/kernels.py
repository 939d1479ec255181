"""The request-level simulation between two control events, compiled.

Requests are rows of arrays; a queue and a running batch are chains of rows through `following`. Three things can happen next: an
arrival (or a request that went through the proxy to its next stage), the end of the first batch to end, a batcher's delay that
ran out. Batches on one device share it: each progresses at the speed of `l(b, k)` for the k that are busy at that very moment
(processor sharing, exact), so whenever k changes the device's batches are settled and its first end is computed anew.
"""

from __future__ import annotations

import numpy as np

from themis_triton.sim.jit import kernel
from themis_triton.sim.service import bucket, least, noise, reschedule, settle
from themis_triton.sim.state import (
    ARRIVALS,
    CENTRAL,
    COMPUTE_US,
    CORES,
    CROSSING_HEAD,
    CROSSING_TAIL,
    CURSOR,
    EVENTS,
    EXECUTIONS,
    FAILURES,
    FIRST_DEVICE,
    FIRST_TIMER_S,
    FREE,
    HOP_S,
    IN_FLIGHT,
    INFERENCES,
    NEXT,
    NONE,
    NOW_S,
    QUEUE_US,
    SUCCESS,
    Engine,
)

_ARRIVE, _CROSS, _END, _EXPIRE = range(4)


@kernel
def advance(e: Engine, until_s: float) -> None:
    """Let everything happen that is due until then; the next call goes on from there."""
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
        if kind == _ARRIVE:
            e.ints[NEXT] += 1
            enter(e, request, due_s)
        elif kind == _CROSS:
            e.ints[CROSSING_HEAD] = e.following[crossing]
            enter(e, crossing, due_s)
        elif kind == _END:
            end_batch(e, e.ints[FIRST_DEVICE], due_s)
        else:
            expire(e, due_s)
    e.floats[NOW_S] = max(e.floats[NOW_S], until_s)


@kernel
def enter(e: Engine, request: int, now_s: float) -> None:
    """A request reaches the proxy for its present stage."""
    model = e.chains[e.pipeline[request], e.stage[request]]
    e.entered_s[request] = now_s
    e.routes[model, ARRIVALS] += 1
    e.routes[model, IN_FLIGHT] += 1
    place(e, request, model, now_s)


@kernel
def place(e: Engine, request: int, model: int, now_s: float) -> None:
    """Into a queue, and on into a batch where an instance is free; a request that no server can take fails."""
    server = any_routed(e, model) if e.ints[CENTRAL] else least_loaded(e, model)
    if server == NONE:
        e.routes[model, IN_FLIGHT] -= 1
        e.routes[model, FAILURES] += 1
        e.failed[request] = 1
        e.ended_s[request] = now_s
        return
    queue = queue_of(e, server, model)
    e.following[request] = NONE
    if e.length[queue] == 0:
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


@kernel
def queue_of(e: Engine, server: int, model: int) -> int:
    """The queue that feeds a server's model."""
    return model if e.ints[CENTRAL] else server * e.routed.shape[1] + model


@kernel
def least_loaded(e: Engine, model: int) -> int:
    """The routed server with the fewest requests of the model, ties in turn; NONE when there is none."""
    places = e.routed.shape[0]
    start, best, least = e.routes[model, CURSOR], NONE, 0
    for offset in range(places):
        server = start + offset
        if server >= places:
            server -= places
        if e.routed[server, model] and (best == NONE or e.outstanding[server, model] < least):
            best, least = server, e.outstanding[server, model]
    if best != NONE:
        e.routes[model, CURSOR] = best + 1 if best + 1 < places else 0
    return best


@kernel
def any_routed(e: Engine, model: int) -> int:
    """The first routed server; NONE when there is none."""
    for server in range(e.routed.shape[0]):
        if e.routed[server, model]:
            return server
    return NONE


@kernel
def workers_of(e: Engine, server: int, model: int) -> int:
    """Batches that a server can serve at once for a model."""
    instances: int = e.instances[server, model]
    return min(1, instances) if e.ints[CORES] else instances


@kernel
def offer(e: Engine, model: int, now_s: float) -> None:
    """The central dispatcher: servers in their order take what waits."""
    for server in range(e.routed.shape[0]):
        waiting = e.length[model]
        if waiting == 0:
            return
        if e.routed[server, model] and e.busy[server, model] < workers_of(e, server, model):
            due_s = e.entered_s[e.head[model]] + e.delay_s[server, model]
            if waiting >= e.max_batch[server, model] or due_s <= now_s or due_s < e.timer_s[model]:
                take(e, server, model, now_s)


@kernel
def fill(e: Engine, server: int, model: int, now_s: float) -> bool:
    """Triton's dynamic batcher: a free instance takes what waits, up to the largest batch; less than that waits for the queue delay.

    Returns whether a batch started; then `reschedule` must follow.
    """
    if e.ints[CENTRAL] and not e.routed[server, model]:
        return False
    queue, started = queue_of(e, server, model), False
    while e.busy[server, model] < workers_of(e, server, model) and e.length[queue] > 0:
        size = min(e.length[queue], e.max_batch[server, model])
        due_s = e.entered_s[e.head[queue]] + e.delay_s[server, model]
        if size < e.max_batch[server, model] and due_s > now_s:
            e.timer_s[queue] = min(e.timer_s[queue], due_s)
            e.floats[FIRST_TIMER_S] = min(e.floats[FIRST_TIMER_S], due_s)
            break
        start_batch(e, server, model, queue, size, now_s)
        started = True
    return started


@kernel
def take(e: Engine, server: int, model: int, now_s: float) -> None:
    """`fill`, and the device's next end."""
    if fill(e, server, model, now_s):
        reschedule(e, e.device[server], now_s)


@kernel
def start_batch(e: Engine, server: int, model: int, queue: int, size: int, now_s: float) -> None:
    """Move the queue's first requests into a batch on the server's device; `reschedule` must follow."""
    device = e.device[server]
    settle(e, device, now_s)
    e.ints[FREE] -= 1
    batch = e.free[e.ints[FREE]]
    e.batch_head[batch] = e.head[queue]
    waited_s, last = 0.0, e.head[queue]
    for taken in range(size):
        if taken > 0:
            last = e.following[last]
        waited_s += now_s - e.entered_s[last]
    e.head[queue] = e.following[last]
    e.following[last] = NONE
    e.length[queue] -= size
    e.batch_place[batch, 0], e.batch_place[batch, 1] = server, model
    e.batch_size[batch], e.batch_left[batch], e.batch_start_s[batch] = size, 1.0, now_s
    e.batch_factor[batch] = noise(e)
    e.running[device, e.under_way[device]] = batch
    e.under_way[device] += 1
    e.busy[server, model] += 1
    e.served[server, model, QUEUE_US] += 1e6 * waited_s
    e.served[server, model, EXECUTIONS] += 1.0


@kernel
def end_batch(e: Engine, device: int, now_s: float) -> None:
    """The device's first batch is done: answer its requests or send them on, and let its instance take the next."""
    batch = e.first[device]
    server, model = e.batch_place[batch, 0], e.batch_place[batch, 1]
    settle(e, device, now_s)
    lift(e, batch)
    size = e.batch_size[batch]
    e.served[server, model, SUCCESS] += size
    e.served[server, model, INFERENCES] += size
    e.served[server, model, COMPUTE_US] += 1e6 * size * (now_s - e.batch_start_s[batch])
    e.routes[model, IN_FLIGHT] -= size
    request = e.batch_head[batch]
    while request != NONE:
        following = e.following[request]
        e.histogram[model, bucket(e.bounds_s, now_s - e.entered_s[request])] += 1
        leave(e, request, now_s)
        request = following
    fill(e, server, model, now_s)
    reschedule(e, device, now_s)


@kernel
def lift(e: Engine, batch: int) -> None:
    """Take a batch off its settled device and out of its server's counts."""
    server, model = e.batch_place[batch, 0], e.batch_place[batch, 1]
    device = e.device[server]
    index = 0
    while e.running[device, index] != batch:
        index += 1
    e.under_way[device] -= 1
    e.running[device, index] = e.running[device, e.under_way[device]]
    e.busy[server, model] -= 1
    if not e.ints[CENTRAL]:
        e.outstanding[server, model] -= e.batch_size[batch]
    e.free[e.ints[FREE]] = batch
    e.ints[FREE] += 1


@kernel
def leave(e: Engine, request: int, now_s: float) -> None:
    """A request has its stage's answer: the chain goes on after one proxy hop, or ends."""
    e.stage[request] += 1
    if e.chains[e.pipeline[request], e.stage[request]] == NONE:
        e.ended_s[request] = now_s
        return
    e.entered_s[request] = now_s + e.floats[HOP_S]
    e.following[request] = NONE
    if e.ints[CROSSING_HEAD] == NONE:
        e.ints[CROSSING_HEAD] = request
    else:
        e.following[e.ints[CROSSING_TAIL]] = request
    e.ints[CROSSING_TAIL] = request


@kernel
def expire(e: Engine, now_s: float) -> None:
    """A batcher's delay ran out: what waits goes as it is."""
    queue = least(e.timer_s)
    e.timer_s[queue] = np.inf
    e.floats[FIRST_TIMER_S] = e.timer_s[least(e.timer_s)]
    models = e.routed.shape[1]
    if e.ints[CENTRAL]:
        offer(e, queue, now_s)
    else:
        take(e, queue // models, queue % models, now_s)


@kernel
def configure(e: Engine, server: int, model: int, instances: int, max_batch: int, delay_s: float) -> None:
    """Change what a server runs for a model, now; batches under way end as they are."""
    now_s = e.floats[NOW_S]
    settle(e, e.device[server], now_s)
    e.instances[server, model], e.max_batch[server, model], e.delay_s[server, model] = instances, max_batch, delay_s
    fill(e, server, model, now_s)
    reschedule(e, e.device[server], now_s)


@kernel
def evict(e: Engine, server: int) -> None:
    """A server that is out of the routes ends at once: the proxy sends what it held to the others, from the stage's start."""
    now_s, device = e.floats[NOW_S], e.device[server]
    settle(e, device, now_s)
    for index in range(e.under_way[device] - 1, -1, -1):
        batch = e.running[device, index]
        if e.batch_place[batch, 0] == server:
            lift(e, batch)
            again(e, e.batch_head[batch], e.batch_place[batch, 1], now_s)
    reschedule(e, device, now_s)
    for model in range(e.routed.shape[1]):
        e.instances[server, model] = 0
        queue = queue_of(e, server, model)
        if not e.ints[CENTRAL] and e.length[queue] > 0:
            waiting = e.head[queue]
            e.length[queue], e.outstanding[server, model] = 0, 0
            again(e, waiting, model, now_s)


@kernel
def again(e: Engine, request: int, model: int, now_s: float) -> None:
    """Place a chain of requests anew."""
    while request != NONE:
        following = e.following[request]
        place(e, request, model, now_s)
        request = following
