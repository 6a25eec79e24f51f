"""How long the worst prompts of the greatest length take to read: `python -m benchmarks.prompts`."""

import contextlib
import time

from benchmarks.machine import machine
from engine.prompts import Timeline, parse
from engine.protocol import MAX_PROMPT_CHARS, InvalidJob

STEPS = 300
REPEATS = 7
ALTERNATING = "[a|b|c|d|e|f|g]"
"""Seven texts of that length: about as many as are allowed."""
UNITS = ("()", "[]", "[(])", ")]", "(a)[b]", "(a:1.1)", ":1", "a:", "B", "\\(", "BREAK ", "<lora:a:1>", "<a:")
WORST = (
    *UNITS,
    *(ALTERNATING + unit for unit in UNITS),
    *("[a|b]", "[|]", "[a:b:3]", "[||][||||][||||||][|]", "(" * 31 + "()"),
)


def seconds(text: str) -> float:
    """The fastest of a few times: of this process' own processor time."""
    fastest = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        with contextlib.suppress(InvalidJob):
            parse(text, Timeline(steps=STEPS))
        fastest = min(fastest, time.process_time() - began)
    return fastest


def main() -> None:
    texts = []
    for start in WORST:
        unit = next((unit for unit in UNITS if start.endswith(unit)), start)
        texts.append((start + unit * MAX_PROMPT_CHARS)[:MAX_PROMPT_CHARS])
    slowest = max(texts, key=seconds)
    print(machine())
    print(f"slowest of {len(texts)} prompts of {MAX_PROMPT_CHARS} characters, {STEPS} evaluations:")
    print(f"{1e3 * seconds(slowest):.1f} ms for {slowest[:40]!r}…; the promise is 50 ms")


if __name__ == "__main__":
    main()
