"""How the demonstration speaks: chapters, streamed answers, receipts and times, on a terminal.

In a terminal it has colour; in a pipe it is plain text, line by line. It starts nothing and
judges nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule

from anabranch.types import Receipt


class Narrator:
    """Tells the demonstration, and keeps how long each chapter took, in seconds."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._started = time.monotonic()
        self.took: dict[str, float] = {}
        self.chapter_name = "the beginning"

    @contextmanager
    def chapter(self, name: str) -> Iterator[None]:
        """A heading, and the time until the block is left."""
        self.chapter_name = name
        started = time.monotonic()
        self._console.print()
        if self._console.is_terminal:
            self._console.print(Rule(f"[bold]{name}", align="left"))
        else:
            self._console.print(f"== {name}")
        yield
        self.took[name] = time.monotonic() - started

    def say(self, text: str) -> None:
        """A sentence between the events."""
        self._console.print(escape(text))

    def done(self, text: str) -> None:
        """Something came out as it should."""
        self._console.print(f"[green]✓[/] {escape(text)}")

    def event(self, text: str) -> None:
        """Something happens, possibly in the middle of an answer."""
        self._console.print(f"\n[bold yellow]⚡ {escape(text)}[/]")

    def asked(self, who: str, question: str) -> None:
        """A question; the answer follows with `streamed`."""
        self._console.print(f"[bold cyan]{escape(who)}:[/] {escape(question)}")

    def answering(self, who: str) -> None:
        """The name before an answer."""
        self._console.print(f"[bold magenta]{escape(who)}:[/] ", end="")

    def streamed(self, text: str) -> None:
        """A piece of an answer, at once."""
        self._console.print(escape(text), end="")
        self._console.file.flush()

    def end_of_answer(self) -> None:
        """The answer is complete."""
        self._console.print()

    def receipt(self, receipt: Receipt) -> None:
        """How the router handled it."""
        rows = receipt_rows(receipt)
        width = max(map(len, rows))
        for key, value in rows.items():
            self._console.print(f"    [dim]{key.ljust(width)}[/]  {escape(value)}")

    def failed(self, text: str, logs: str) -> None:
        """The last words when something went wrong."""
        self._console.print(f"\n[bold red]✗ {escape(self.chapter_name)}:[/] {escape(text)}")
        self._console.print(f"All logs are in {escape(logs)}")

    def times(self) -> None:
        """How long everything took."""
        self._console.print()
        for name, seconds in self.took.items():
            self._console.print(f"  {seconds:6.1f} s  {escape(name)}")
        self._console.print(f"  {time.monotonic() - self._started:6.1f} s  in all")


def receipt_rows(receipt: Receipt) -> dict[str, str]:
    """What a receipt says, for people."""
    rows = {"tier": str(receipt.tier), "backend": receipt.backend_id}
    rows["model"] = receipt.served_model
    if receipt.overflow_reason is not None:
        rows["left local because"] = str(receipt.overflow_reason)
    if receipt.ttft is not None:
        rows["first token after"] = _milliseconds(receipt.ttft)
    if receipt.queue_time >= 0.001:
        rows["waited for a slot"] = _milliseconds(receipt.queue_time)
    if receipt.cost_microusd:
        rows["cost"] = f"{receipt.cost_microusd} µUSD (an invented price)"
    if receipt.resumed_at_tokens:
        rows["resumed after tokens"] = ", ".join(map(str, receipt.resumed_at_tokens))
    if len(receipt.attempts) > 1:
        rows["attempts"] = " → ".join(
            f"{attempt.backend_id} ({attempt.error_reason or 'answered'})"
            for attempt in receipt.attempts
        )
    return rows


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"
