"""The prompt grammar, AUTOMATIC1111's, in linear time. Standard library only. Read `plan` first."""

from engine.prompts.emphasis import Prompt, parse_emphasis
from engine.prompts.networks import Network
from engine.prompts.plan import Part, Plan, parse, parse_negative
from engine.prompts.schedule import Timeline

__all__ = ["Network", "Part", "Plan", "Prompt", "Timeline", "parse", "parse_emphasis", "parse_negative"]
