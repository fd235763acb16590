"""Compiled pipelines of a device: kept in memory, and compiled side by side, each of them once.

Whoever knows a text before all else is ready begins with it: wgpu and drivers work without Python's
lock, so what is generated, sorted and uploaded meanwhile costs no time. The longest text comes
first, since the last one to end decides.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

from autograd_gpu.codegen.program import BindingKind, PipelineSpec
from autograd_gpu.events import report
from autograd_gpu.runtime.threads import available_threads

PIPELINE_CACHE_SIZE = 256
"""Most pipelines kept; those used longest ago go."""

_Key = tuple[str, str, tuple[BindingKind, ...]]
"""Digest of the text, entry point, kinds of bindings."""


@dataclass(frozen=True, slots=True)
class CompiledPipeline:
    """wgpu's pipeline, and the layout that its bind groups are made with."""

    pipeline: Any
    bind_group_layout: Any


Compile = Callable[[PipelineSpec], CompiledPipeline]


class Pipelines:
    """The pipelines of one device. All methods may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._known: OrderedDict[_Key, CompiledPipeline] = OrderedDict()
        self._in_flight: dict[_Key, Future[CompiledPipeline]] = {}
        self._unasked: set[_Key] = set()  # begun, and not yet a miss in anybody's telemetry
        self._generation = 0

    def begin(self, specs: Sequence[PipelineSpec], compile_one: Compile) -> None:
        """Start to compile those that are new; an error is told to whoever then asks for it."""
        keys = [_key(spec) for spec in specs]
        with self._lock:
            self._unasked.update(self._start(keys, specs, compile_one))

    def get(self, specs: Sequence[PipelineSpec], compile_one: Compile) -> list[CompiledPipeline]:
        """The compiled forms, when all are there.

        Args:
            specs: texts and what goes with them.
            compile_one: compiles one; called from threads of a pool.

        Raises:
            Exception: what ``compile_one`` raised, for the first one at fault.
        """
        keys = [_key(spec) for spec in specs]
        with self._lock:
            started = {*self._start(keys, specs, compile_one), *self._unasked.intersection(keys)}
            self._unasked.difference_update(keys)
            found = {key: self._known.get(key) or self._in_flight[key] for key in keys}
            for key in keys:
                if key in self._known:
                    self._known.move_to_end(key)
        for key in keys:
            report("cache", "pipelines", hit=key not in started)
            started.discard(key)
        ready = {k: f.result() if isinstance(f, Future) else f for k, f in found.items()}
        return [ready[key] for key in keys]

    def clear(self) -> None:
        """Forget all, also what is being compiled: the device was lost."""
        with self._lock:
            self._generation += 1
            self._known.clear()
            self._in_flight.clear()
            self._unasked.clear()

    def close(self) -> None:
        """Wait for what is being compiled, and forget all."""
        with self._lock:
            waiting = [*self._in_flight.values()]
            pool, self._pool = self._pool, None
        wait(waiting)
        if pool is not None:
            pool.shutdown(wait=False)
        self.clear()

    def _start(
        self, keys: Sequence[_Key], specs: Sequence[PipelineSpec], compile_one: Compile
    ) -> list[_Key]:
        """Hand what is new to the pool, the longest text first; its keys. Under the lock."""
        new = {
            key: spec
            for key, spec in zip(keys, specs, strict=True)
            if key not in self._known and key not in self._in_flight
        }
        if new and self._pool is None:
            self._pool = ThreadPoolExecutor(available_threads(), "autograd_gpu-compile")
        ordered = sorted(new, key=lambda key: -len(new[key].source))
        for key in ordered:
            assert self._pool is not None
            future: Future[CompiledPipeline] = Future()
            self._in_flight[key] = future
            make = partial(compile_one, new[key])
            self._pool.submit(self._make, key, make, future, self._generation)
        return ordered

    def _make(
        self,
        key: _Key,
        make: Callable[[], CompiledPipeline],
        future: Future[CompiledPipeline],
        generation: int,
    ) -> None:
        """Compile one, in a thread of the pool."""
        try:
            compiled = make()
        except BaseException as error:
            self._ended(key, future, None, generation)
            future.set_exception(error)
        else:
            self._ended(key, future, compiled, generation)
            future.set_result(compiled)

    def _ended(
        self,
        key: _Key,
        future: Future[CompiledPipeline],
        compiled: CompiledPipeline | None,
        generation: int,
    ) -> None:
        with self._lock:
            if self._in_flight.get(key) is future:
                del self._in_flight[key]
            if compiled is None or generation != self._generation:
                return
            self._known[key] = compiled
            if len(self._known) > PIPELINE_CACHE_SIZE:
                self._unasked.discard(self._known.popitem(last=False)[0])


def _key(spec: PipelineSpec) -> _Key:
    digest = hashlib.blake2b(spec.source.encode(), digest_size=16).hexdigest()
    return digest, spec.entry_point, spec.bindings
