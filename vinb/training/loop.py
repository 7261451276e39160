"""`run`: takes a step function many times, quickly, and stops where something went wrong.

The steps are taken in chunks of at most about two seconds. Between chunks Python looks at the losses, moves
the progress line, calls the evaluation hook and writes checkpoints; none of this changes the result, nor does
the length of the chunks.
"""

import functools
import math
import operator
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vinb.training import checkpoint as checkpoints
from vinb.training import programs as compiling
from vinb.training.progress import bar

SECONDS_BETWEEN_CHECKPOINTS = 30.0
STEPS_WITH_SEVERAL_PROCESSES = 256


class Diverged(FloatingPointError):
    """A loss or a parameter became NaN or infinite.

    ``step`` is the first step (counted from 0) whose loss or resulting state is not finite, ``loss`` the loss of
    that step, ``state`` the last finite state, that is the one this step started from, ``losses`` the losses of
    all steps before it.
    """

    def __init__(self, message, *, step: int, loss: float, state: Any, losses: np.ndarray):
        super().__init__(message)
        self.step, self.loss, self.state, self.losses = step, loss, state, losses


@dataclass(frozen=True)
class Trained:
    """What `run` returns.

    ``state``: the final state. ``losses``: float32 ``[num_steps]``, the loss of every step, computed before that step's
    update. ``evaluations``: name -> ``[len(evaluation_steps)]``, beside ``evaluation_steps``. ``seconds``: wall time of the
    training itself, without compilation, evaluations and checkpoints, all resumed parts together. ``compile_seconds``:
    tracing and compilation in this call, and with ``loop="auto"`` the measurement too (about half a second, or a few steps
    if those take longer). ``loop``: "scan" or "step". ``overhead``: fraction of this call's training time that Python spent
    between chunks. ``flops`` and ``temp_bytes``: XLA's own count for the compiled program, in which a loop's body counts
    once, hence per step; None where XLA gives none.
    """

    state: Any
    losses: np.ndarray
    evaluations: dict[str, np.ndarray]
    evaluation_steps: np.ndarray
    seconds: float
    compile_seconds: float
    loop: str
    overhead: float
    flops: float | None
    temp_bytes: int | None


@dataclass(frozen=True)
class _WithData:
    """A user's step in the form the programs call it: without a context, the data unpacked."""

    step: Any

    def __call__(self, state, t, context, data):
        return compiling.unwrapped(self.step)(state, t, *data)


def run(
    step: Callable,
    state: Any,
    num_steps: int,
    *,
    data: tuple = (),
    loop: str = "auto",
    evaluate: Callable | None = None,
    evaluate_at: Iterable[int] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    progress: bool | str | None = None,
    max_chunk_seconds: float = 2.0,
) -> Trained:
    """Takes ``num_steps`` steps ``state, loss = step(state, t, *data)`` for t = 0, 1, ...

    Both loops keep the state a chunk started from, from which it is repeated if a number in it turns out not to
    be finite. So "scan" donates nothing: its input is that copy, and inside the compiled loop XLA updates in
    place anyway. "step" copies the state once per chunk and donates it from one step to the next. Either holds
    the state twice.

    Args:
        step: a pure function of the state, the step's number ``t`` (a traced int32 scalar) and ``data``; returns the new
            state, of the same structure, shapes and dtypes, and a real scalar loss. Randomness: carry a key in the state
            or use ``jax.random.fold_in(key, t)``; never the same key at every step. Calling `run` again with the same
            function object and shapes does not compile again.
        state: any pytree. Its arrays (typed keys among them) are carried; other leaves (functions, strings, Python
            numbers) stay as they are. The arrays given survive: they are never donated.
        num_steps: how many steps, at least 1.
        data: arrays (or pytrees of them) that every step gets. Arrays that ``step`` closes over instead work too, but
            become constants of the compiled program: slow to compile if large.
        loop: "scan" takes many steps in one compiled loop, "step" calls a compiled step from Python; which one is faster
            depends on model and machine (on CPU, convolutions are many times slower inside a compiled loop). "auto"
            measures both on copies of the state. The two may differ in the last bits, so name one where results must
            repeat exactly.
        evaluate: ``evaluate(state, t)`` returns a dict of real scalars; called after ``t`` steps for each ``t`` in
            ``evaluate_at``.
        evaluate_at: integers in 0..num_steps (0: the initial state; ``num_steps``: the final one).
        checkpoint: a file. If it exists, the run goes on from it and ends bit-identical to an uninterrupted one (same
            machine and core count). ``num_steps`` may grow between calls.
        checkpoint_every: steps between checkpoints, the last one at the end; None: about every 30 seconds.
        progress: True, False, a label, or None: shown on a terminal and in notebooks. VINB_PROGRESS=0 turns it off.
        max_chunk_seconds: about how long the compiled loop runs before Python looks at it. (With several processes of
            ``jax.distributed``, chunks have a fixed number of steps, and process 0 writes the checkpoints, which all must
            be able to read.)

    Returns:
        `Trained`.

    Raises:
        ValueError: for an argument out of range, or arguments that do not go together.
        TypeError: for a step that changes the structure, shapes or dtypes of the state, and for other wrong types.
        Diverged: if a loss, or a floating-point array of the state, becomes NaN or infinite. Arrays of the state with a
            non-finite entry already at the start (such as a best loss so far, initially infinite) are not checked.
            Checking happens at chunk ends; the step at fault is then found by repeating the chunk.
        CheckpointMismatch: if the checkpoint is damaged or belongs to another run.
    """
    return drive(
        _WithData(compiling.hashable(step)),
        state,
        num_steps,
        data=tuple(data),
        loop=loop,
        evaluate=evaluate,
        evaluate_at=evaluate_at,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
        max_chunk_seconds=max_chunk_seconds,
    )


def drive(
    step,
    state,
    num_steps,
    *,
    data,
    context=None,
    period=None,
    describe=None,
    loop,
    evaluate,
    evaluate_at,
    checkpoint,
    checkpoint_every,
    progress,
    max_chunk_seconds,
) -> Trained:
    """`run` for steps ``(state, t, context, data)``, where ``context(t // period, data)`` is what a block of
    ``period`` steps shares; chunks end where blocks do."""
    evaluate_at = _check(
        num_steps, loop, evaluate, evaluate_at, checkpoint, checkpoint_every, max_chunk_seconds
    )
    path = None if checkpoint is None else Path(checkpoint)
    header, payload = checkpoints.read(path) if path is not None and path.exists() else (None, None)
    if header is not None and loop == "auto":
        loop = header["fingerprint"].get("loop", "scan")

    started = time.perf_counter()
    data = jax.tree.map(compiling.as_array, data)
    arrays, structure = compiling.split(state)
    checked = np.asarray(compiling.finite(arrays))
    programs = compiling.programs(step, context, structure, arrays)
    program, loop = _choose(programs, loop, arrays, data)
    compile_seconds = time.perf_counter() - started

    done, losses, evaluations, seconds = 0, np.full(num_steps, np.nan, np.float32), {}, 0.0
    fingerprint = None
    if path is not None:
        fingerprint = {
            "checkpoint format": 1,
            **(describe or {}),
            "state": checkpoints.describe(arrays, structure.names()),
            "loop": loop,
            "version of jax": jax.__version__,
            "program": checkpoints.digest(np.frombuffer(program.text().encode(), np.uint8)),
            "initial state": checkpoints.digest(arrays),
            "data": checkpoints.digest(data),
        }
    if header is not None:
        checkpoints.check(path, header, fingerprint)
        done, seconds = header["step"], header["seconds"]
        if done > num_steps:
            raise checkpoints.CheckpointMismatch(
                f"checkpoint {str(path)!r} is at step {done}, beyond num_steps={num_steps}; ask for at least "
                f"{done}."
            )
        arrays, losses[:done], evaluations = checkpoints.restore(header, payload, arrays)
        expected = [t for t in evaluate_at if t <= done] if evaluate is not None else []
        if header["evaluation steps"] != expected:
            raise checkpoints.CheckpointMismatch(
                f"checkpoint {str(path)!r} was evaluated at steps {header['evaluation steps']}, but "
                f"evaluate_at asks for {expected} up to its step {done}; give the same evaluate_at or delete "
                "the file."
            )

    def look(t):
        if t in evaluate_at:
            _append(evaluations, evaluate(structure.join(arrays), t), t)

    def save():
        if jax.process_index() != 0:
            return
        steps = [t for t in evaluate_at if t <= done]
        checkpoints.save(path, fingerprint, done, arrays, losses, steps, evaluations, seconds)

    if header is None:
        look(0)
    stops = {*evaluate_at, num_steps, *(range(0, num_steps, checkpoint_every) if checkpoint_every else ())}
    stops = sorted(stop for stop in stops if stop > done)
    # Several processes must all make the same calls, so nothing may depend on one's clock there.
    several = jax.process_count() > 1
    allowed = STEPS_WITH_SEVERAL_PROCESSES if several else 1
    spent, waited, saved_at = 0.0, 0.0, time.perf_counter()
    block, shared = None, None
    line = bar(num_steps, done=done, show=progress)
    try:
        for stop in stops:
            while done < stop:
                begin = time.perf_counter()
                count = min(allowed, stop - done, compiling.CAPACITY)
                if period is not None:
                    count = min(count, period - done % period)
                    if block != done // period:
                        block, shared = done // period, program.context(done // period)
                new_arrays, chunk = program.advance(arrays, done, count, shared)
                chunk = np.asarray(chunk)[:count]  # waits for the chunk
                wait = time.perf_counter() - begin
                if _not_finite(new_arrays, structure, checked) or not np.isfinite(chunk).all():
                    replay = functools.partial(program.advance, arrays, done, shared=shared)
                    raise _diverged(replay, arrays, structure, checked, done, chunk, losses)
                arrays = new_arrays
                losses[done : done + count] = chunk
                done += count
                line.set_postfix_str(f"loss {chunk[-1]:.5g}", refresh=False)
                line.update(count)
                # Towards nine tenths of the limit, by at most a factor of eight: the first steps may be slow.
                growth = 8 if count == allowed else 1
                if not several:
                    allowed = max(1, min(growth * allowed, int(0.9 * max_chunk_seconds * count / wait)))
                took = time.perf_counter() - begin
                spent, waited, seconds = spent + took, waited + wait, seconds + took
                overdue = not several and time.perf_counter() - saved_at > SECONDS_BETWEEN_CHECKPOINTS
                if path is not None and not checkpoint_every and done < stop and overdue:
                    save()
                    saved_at = time.perf_counter()
            look(done)
            if path is not None and (
                done == num_steps or (checkpoint_every and done % checkpoint_every == 0)
            ):
                save()
    finally:
        line.close()

    return Trained(
        state=structure.join(arrays),
        losses=losses,
        evaluations={name: np.asarray(values) for name, values in evaluations.items()},
        evaluation_steps=np.asarray(evaluate_at, int),
        seconds=seconds,
        compile_seconds=compile_seconds,
        loop=loop,
        overhead=1 - waited / spent if spent else 0.0,
        flops=program.flops,
        temp_bytes=program.temp_bytes,
    )


def require_count(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {value!r}.")


def _check(
    num_steps, loop, evaluate, evaluate_at, checkpoint, checkpoint_every, max_chunk_seconds
) -> list[int]:
    """Refuses bad arguments; returns the evaluation steps in order."""
    require_count("num_steps", num_steps)
    if checkpoint_every is not None:
        require_count("checkpoint_every", checkpoint_every)
    if loop not in ("auto", "scan", "step"):
        raise ValueError(f"loop must be 'auto', 'scan' or 'step'; got {loop!r}.")
    if loop == "auto" and jax.process_count() > 1:
        raise ValueError("loop='auto' measures, and processes may disagree; give 'scan' or 'step'.")
    if not max_chunk_seconds > 0:
        raise ValueError(f"max_chunk_seconds must be positive; got {max_chunk_seconds!r}.")
    if checkpoint_every is not None and checkpoint is None:
        raise ValueError("checkpoint_every needs checkpoint=, the file to write.")
    try:
        steps = sorted({operator.index(t) for t in evaluate_at})
    except TypeError:
        raise TypeError(f"evaluate_at must be a sequence of integers; got {evaluate_at!r}.") from None
    if bool(steps) != (evaluate is not None):
        raise ValueError(
            "evaluate and evaluate_at go together: a function (state, t) -> dict, and the steps."
        )
    if steps and not 0 <= steps[0] <= steps[-1] <= num_steps:
        raise ValueError(f"evaluate_at must lie in 0..num_steps={num_steps}; got {steps[0]}..{steps[-1]}.")
    return steps


def _append(evaluations: dict, values: dict, t: int) -> None:
    if not isinstance(values, dict):
        raise TypeError(f"evaluate must return a dict of scalars; got {type(values).__name__}.")
    if evaluations and set(values) != set(evaluations):
        raise ValueError(
            f"evaluate returned {sorted(values)} at step {t} but {sorted(evaluations)} before; the names "
            "must agree."
        )
    for name, value in jax.device_get(values).items():
        if np.ndim(value) != 0:
            raise TypeError(
                f"evaluate returned an array of shape {np.shape(value)} as {name!r}; scalars are needed."
            )
        evaluations.setdefault(name, []).append(float(value))


def _choose(programs, loop, arrays, data):
    """The compiled program of ``loop``; for "auto" of the faster one, measured once per program and shapes."""
    if loop == "auto":
        shapes = tuple((array.shape, str(array.dtype)) for array in jax.tree.leaves((arrays, data)))
        if shapes not in programs.faster:
            times = {}
            for name in ("step", "scan"):
                program = compiling.compiled(programs, name, arrays, data)
                advance = functools.partial(program.advance, arrays, 0, shared=program.context(0))
                jax.block_until_ready(advance(1))
                times[name] = _seconds_per_step(advance)
            programs.faster[shapes] = min(times, key=times.get)
        loop = programs.faster[shapes]
    return compiling.compiled(programs, loop, arrays, data), loop


def _seconds_per_step(advance, budget: float = 0.3) -> float:
    """The best of a few timings that together take about ``budget`` seconds, or one step if that is longer."""
    count, best, begin = 1, math.inf, time.perf_counter()
    while True:
        start = time.perf_counter()
        jax.block_until_ready(advance(count))
        seconds = time.perf_counter() - start
        best = min(best, seconds / count)
        if time.perf_counter() - begin > budget / 2 or count == compiling.CAPACITY:
            return best
        count = min(max(1, int(budget / 4 / best)), 8 * count, compiling.CAPACITY)


def _not_finite(arrays, structure, checked) -> list[str]:
    """Names of the arrays that should be finite and are not."""
    good = np.asarray(compiling.finite(arrays))
    return [n for n, g, check in zip(structure.names(), good, checked, strict=True) if check and not g]


def _diverged(replay, arrays, structure, checked, start, chunk, losses) -> Diverged:
    """Finds the first bad step of a chunk by repeating it from its start: same program, same numbers."""

    def state_after(count):
        result = replay(count)[0] if count else arrays
        return result, _not_finite(result, structure, checked)

    # The state is finite after `low` steps; after `high` it is not, or the loss of the last of them is not.
    bad_loss = np.flatnonzero(~np.isfinite(chunk))
    low, high, last = 0, int(bad_loss[0]) + 1 if bad_loss.size else len(chunk), arrays
    tries = 0
    while high - low > 1:
        # Nearly always the fault lies in the last two steps; otherwise bisect.
        probe = high - 1 if tries < 2 else (low + high) // 2
        tries += 1
        state, bad = state_after(probe)
        if bad:
            high = probe
        else:
            low, last = probe, state
    index = high - 1
    step, loss = start + index, float(chunk[index])
    names = state_after(high)[1]
    what = f"the loss is {loss:.6g}" if not math.isfinite(loss) else f"the loss is still {loss:.6g}"
    where = (
        f", and after it these arrays of the state are not finite: {', '.join(names[:6])}" if names else ""
    )
    before = np.concatenate([losses[:start], chunk[:index]])
    recent = ", ".join(f"{value:.5g}" for value in before[-5:]) or "none"
    return Diverged(
        f"training diverged at step {step}: {what}{where}. Losses just before: {recent}. Things to try: a "
        "smaller step size or a warm-up; clipping gradients (optax.clip_by_global_norm); looking for NaN, "
        "infinities or wrong scales in the data; log-space formulas where the loss takes logs or divides; a "
        "bound on scales that may reach zero. The last finite state is in `.state` of this exception, the "
        "losses before in `.losses`.",
        step=step,
        loss=loss,
        state=structure.join(last),
        losses=before,
    )
