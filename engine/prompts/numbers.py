"""Numbers in prompts. What is not one is text, never an error; one out of bounds is refused."""

from engine.protocol import InvalidJob

MAX_WEIGHT = 1000

NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
"""A weight: `1`, `1.2`, `.5`, `-0.5`, `+1`. No exponents."""


def bounded(number: str | float, field: str) -> float:
    """Raises InvalidJob, naming `field`, beyond ±1000: so no product of weights leaves float32."""
    weight = float(number)
    if abs(weight) > MAX_WEIGHT:
        shown = f"{number}"[:20]
        raise InvalidJob(
            f"{field}: the weight {shown} is not allowed; allowed are -{MAX_WEIGHT} to {MAX_WEIGHT}"
        )
    return weight
