"""The batches of the next steps, made in a thread and copied to the device while the model trains. Their order, and so the run,
is the same.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType

import torch

from realcustom.training.batch import Batch

MOST = 64  # batches that wait, at most
LONGEST_WAIT = 10.0  # seconds for the batch in the making, after an error


class ReadAhead:
    """Makes batches in a thread as long as those that wait fill less than a limit; one is always made ahead."""

    def __init__(self, make: Callable[[int], Batch], steps: Sequence[int], limit: int) -> None:
        """Prepare to make the batches of `steps`, in this order.

        Args:
            make: the batch of a step; called in the thread.
            limit: bytes of batches that wait.
        """
        self._make, self._steps, self._limit = make, steps, limit
        self._ready: deque[Batch | BaseException] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        # A thread that is still in native code when Python ends aborts the process; one that waits for a storage is left.
        self._thread.join(None if error is None else LONGEST_WAIT)

    def take(self) -> Batch:
        """The next step's batch. Raises the error that ended its making."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready)
            taken = self._ready.popleft()
            if isinstance(taken, BaseException):
                raise taken
            self._bytes -= taken.nbytes
            self._changed.notify_all()
        return taken

    @property
    def ready(self) -> bool:
        """Whether `take` has a batch to return at once."""
        with self._changed:
            return bool(self._ready) and not isinstance(self._ready[0], BaseException)

    def _run(self) -> None:
        for step in self._steps:
            try:
                made: Batch | BaseException = self._make(step)
            except BaseException as error:  # the training thread raises it
                made = error
            with self._changed:
                self._ready.append(made)
                self._bytes += 0 if isinstance(made, BaseException) else made.nbytes
                self._changed.notify_all()
                if isinstance(made, BaseException):
                    return
                self._changed.wait_for(self._has_room)
                if self._closed:
                    return

    def _has_room(self) -> bool:
        return self._closed or not self._ready or (self._bytes < self._limit and len(self._ready) < MOST)


class DeviceCopies:
    """Batches on their device. The next one is copied on a stream of its own, beside the step that the device computes."""

    def __init__(self, batches: ReadAhead, device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: Batch | None = None

    def take(self) -> Batch:
        """The next step's batch, which the current stream may use. Raises the error that ended its making."""
        batch, self._next = self._next or self._copy(self._batches.take()), None
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in batch.tensors().values():
                tensor.record_stream(current)  # its memory is used again only after what this stream does with it
        return batch

    def copy_next(self) -> None:
        """Begin to copy the batch after the one that was taken, if it is made: nothing waits here."""
        if self._next is None and self._batches.ready:
            self._next = self._copy(self._batches.take())

    def _copy(self, batch: Batch) -> Batch:
        with torch.cuda.stream(self._stream):  # None: nothing is changed
            return batch.to(self._device)
