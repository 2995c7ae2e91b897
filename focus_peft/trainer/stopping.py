"""What ends a run early: a loss that diverges, Ctrl-C, and SIGTERM."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch


logger = logging.getLogger(__name__)

# Micro-batches whose mean loss must stay below the limit
WINDOW = 10
# The limit: so many times the first loss of the run, or the loss of guessing uniformly, whichever is higher
FACTOR = 3.0
# Seconds after the first Ctrl-C within which others are the launcher's, which passes it on
ECHO = 3.0


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is not finite, or the loss explodes."""


class LossLimit:
    """Says what is wrong with a loss, if anything is.

    Args:
        vocab_size (`int`): Guessing uniformly costs its logarithm.
        max_loss (`float`, *optional*): The mean loss of the last `WINDOW` micro-batches must not be higher. Defaults
            to `FACTOR` times the first loss or that of guessing, whichever is higher. 0: no limit.
    """

    def __init__(self, vocab_size: int, max_loss: float | None) -> None:
        self.guessing = math.log(vocab_size)
        self.max_loss = max_loss
        self.restart()

    def restart(self, first: float | None = None, recent: Iterable[float] = ()) -> None:
        """Begin with the first loss of the run, and its last ones, where it goes on."""
        self.first = first
        self.recent: deque[float] = deque(recent, maxlen=WINDOW)

    @property
    def limit(self) -> float:
        if self.max_loss is not None:
            return self.max_loss or math.inf
        return FACTOR * max(self.first or 0.0, self.guessing)

    def problem(self, loss: float, outputs: Mapping[str, Any]) -> str | None:
        """What is wrong with the loss of a micro-batch, or None."""
        if not math.isfinite(loss):
            parts = [name for name in outputs if name.startswith("loss_") and not _finite(outputs[name])]
            return f"`{' and '.join(parts) or 'loss'}` is {loss}"
        self.first = loss if self.first is None else self.first
        self.recent.append(loss)
        mean = sum(self.recent) / len(self.recent)
        if len(self.recent) == WINDOW and mean > self.limit:
            return (
                f"`loss` explodes: the mean of the last {WINDOW} batches is {mean:.4g}, above {self.limit:.4g} "
                "(`max_loss`)"
            )
        return None


def _finite(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or bool(torch.isfinite(value).all())


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM. A checkpoint was saved.

    Attributes:
        code (`int`): The exit code of a program that ends by the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


class Interrupt:
    """Whether Ctrl-C was pressed, or SIGTERM came. Ctrl-C a second time ends the program at once."""

    def __init__(self) -> None:
        self.pressed_at: float | None = None
        self.number = int(signal.SIGINT)

    @property
    def pressed(self) -> bool:
        return self.pressed_at is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within the context, the first signal is only noted. In other threads than the main one, nothing changes."""
        self.pressed_at = None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.pressed_at is None:
            self.pressed_at, self.number = now, number
            name = "Ctrl-C again" if number == signal.SIGINT else "Ctrl-C"
            logger.warning("Interrupted: saving a checkpoint after this step. %s ends the run without one.", name)
        elif number == signal.SIGINT and now - self.pressed_at > ECHO:
            raise KeyboardInterrupt
