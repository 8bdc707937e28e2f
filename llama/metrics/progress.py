"""How far a run has come, for who watches the terminal."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from llama.notes import LOG, say


class Progress:
    """A bar on a terminal, with loss, speed and time left; elsewhere, and in the log, a plain line
    now and then."""

    EVERY = 10.0
    """Seconds between plain lines."""

    def __init__(self, total: int, enabled: bool, done: int = 0) -> None:
        self._enabled = enabled
        self._plain = enabled and not sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="step",
            disable=not enabled or self._plain,
            dynamic_ncols=True,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        self._total = total
        self._done = done
        self._here = 0
        self._seconds = 0.0
        self._printed = time.monotonic()

    def step(self, epoch: int, loss: float, tokens_per_second: float, seconds: float) -> None:
        self._done += 1
        self._here += 1
        self._seconds += seconds
        self._bar.set_description(f"epoch {epoch}", refresh=False)
        self._bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_second:,.0f} tok/s", refresh=False)
        self._bar.update()
        now = time.monotonic()
        if now - self._printed >= self.EVERY or self._done == self._total:
            self._printed = now
            left = self._seconds / self._here * (self._total - self._done)
            line = (
                f"step {self._done}/{self._total}  epoch {epoch}  loss {loss:.3f}  "
                f"{tokens_per_second:,.0f} tok/s  {_clock(left)} left"
            )
            if self._plain:
                self.say(line)
            elif self._enabled:
                LOG.write(line)

    def say(self, line: str) -> None:
        """A line of the log, on standard error too, above the bar."""
        if self._enabled:
            if self._plain:
                say(line)
            else:
                LOG.write(line)
                self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
