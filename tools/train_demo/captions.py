"""Captions of scenes: full sentences, tag lists, parts, none, and words that mean nothing here."""

import random
import string

from tools.train_demo.pictures import COLOURS, POSITIONS, SHAPES, SIZES, Scene, Thing
from tools.train_demo.tokens import CHUNK, Segment, length, random_words

EMPTY_SHARE = 0.10
PARTIAL_SHARE = 0.12
FLUFF_SHARE = 0.20
WEIGHT_SHARE = 0.15
"""Share of captions in which words get a prompt weight though no area was changed."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "small": ("tiny", "little"),
    "medium": ("medium-sized", "middle-sized"),
    "large": ("big", "huge"),
    "gray": ("grey",),
    "purple": ("violet",),
    "ring": ("donut",),
    "diamond": ("rhombus",),
    "circle": ("disc", "dot"),
    "cross": ("plus",),
}
PLACES: dict[str, tuple[str, ...]] = {
    "center": ("in the center", "in the middle", "at the center", "centered"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
}
TAGS = (
    "masterpiece", "best quality", "high quality", "highly detailed", "8k", "4k", "hdr",
    "sharp focus", "ultra detailed", "absurdres", "high resolution", "vector art", "flat design",
    "minimalist", "digital art", "simple", "clean", "award winning", "trending on artstation",
    "professional", "beautiful", "illustration", "icon", "logo", "geometric", "studio lighting",
    "low quality", "worst quality", "blurry", "jpeg artifacts", "watermark", "text", "deformed",
    "ugly", "bad anatomy", "lowres", "cropped", "signature", "photo", "painting", "drawing",
)  # fmt: skip
LEADS = ("a picture of", "a drawing of", "an image of", "a photo of", "an illustration of")

PLACE_WORDS = "background backdrop middle centered on at the in and of a an next to beside"
OTHER_WORDS = "outlined outline unfilled striped stripes filled solid colour color circles squares"
RESERVED = frozenset(
    [*COLOURS, *SHAPES, *SIZES, *POSITIONS]
    + [word for words in SYNONYMS.values() for text in words for word in text.split("-")]
    + [*PLACE_WORDS.split(), *OTHER_WORDS.split()]
)


def caption(scene: Scene, rng: random.Random, loose: float = 1.0) -> list[Segment]:
    """One caption of a scene, as weighted segments; often short of what the scene shows.

    `loose` scales how often it is; words are learned sooner from captions that say everything.
    """
    kind = rng.random() / loose
    if kind < EMPTY_SHARE:
        return _fluff(rng) if rng.random() < 0.4 else []
    whole = kind >= EMPTY_SHARE + PARTIAL_SHARE or any(t.area != 1 for t in scene.things)
    segments = _full(scene, rng) if whole else [(_partial(scene, rng), 1.0)]
    if rng.random() < WEIGHT_SHARE * loose:
        weight = rng.uniform(0.6, 1.5)
        segments = [(text, weight if w == 1 else w) for text, w in segments]
    if rng.random() < FLUFF_SHARE * loose:
        segments = _with_fluff(segments, rng)
    return segments


def long_caption(scene: Scene, rng: random.Random, loose: float = 1.0) -> list[Segment]:
    """A caption of more than one chunk, with the scene somewhere in a wealth of other words."""
    core = caption(scene, rng, loose)
    if not core:
        return core
    room = 2 * CHUNK - length(core)
    before = _words(rng, rng.randint(0, room))
    after = _words(rng, max(0, CHUNK - length([*before, *core])))
    return [*before, *core, *after]


def _words(rng: random.Random, tokens: int) -> list[Segment]:
    """At most `tokens` tokens of words that mean nothing here."""
    segments: list[Segment] = []
    while length(segments) < tokens:
        segments += _fluff(rng)
    while length(segments) > tokens:
        segments.pop()
    return segments


def plain_caption(scene: Scene) -> str:
    """The full sentence used for evaluation; names everything but medium and center."""
    things = [" ".join(_adjectives(thing)) for thing in scene.things]
    text = " and ".join(f"{_article(t)} {t}" for t in things)
    place = scene.things[0].position
    if place != "center":
        text += f" {PLACES[place][0]}"
    return f"{text} on {_article(scene.background)} {scene.background} background"


def _adjectives(thing: Thing) -> list[str]:
    size = [] if thing.size == "medium" else [thing.size]
    return [*size, thing.colour, thing.shape]


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def _word(name: str, rng: random.Random) -> str:
    """A name, or now and then a synonym of it."""
    if name in SYNONYMS and rng.random() < 0.12:
        return rng.choice(SYNONYMS[name])
    return name


def _thing(thing: Thing, rng: random.Random, size_share: float) -> str:
    words = [_word(thing.colour, rng), _word(thing.shape, rng)]
    if thing.size != "medium" or rng.random() < size_share:
        words.insert(0, _word(thing.size, rng))
    return " ".join(words)


def _full(scene: Scene, rng: random.Random) -> list[Segment]:
    """Everything a scene shows, as a sentence or as a list of tags."""
    tags = rng.random() < 0.3
    names = [_thing(t, rng, 0.3) for t in scene.things]
    if not tags or rng.random() < 0.3:
        names = [f"{_article(name)} {name}" for name in names]
    things: list[Segment] = []
    for i, (name, thing) in enumerate(zip(names, scene.things, strict=True)):
        if i:
            things.append((rng.choice(["and"] * 5 + ["next to", "beside"]), 1.0))
        things.append((name, thing.area))
        if tags and i + 1 < len(names):
            things[-1:] = [(name, thing.area), (",", 1.0)]
    if tags:
        things = [s for s in things if s[0] not in ("and", "next to", "beside")]
    place = _place(scene, rng)
    ground = _background(scene, rng, tags)
    if tags:
        parts = [things, *([[(place, 1.0)]] if place else []), *([ground] if ground else [])]
        if rng.random() < 0.3:
            rng.shuffle(parts)
        return _joined(parts)
    return [*things, *([(place, 1.0)] if place else []), *ground]


def _joined(parts: list[list[Segment]]) -> list[Segment]:
    segments: list[Segment] = []
    for part in parts:
        segments += [(",", 1.0), *part] if segments else part
    return segments


def _place(scene: Scene, rng: random.Random) -> str:
    if len(scene.things) > 1:
        return ""
    position = scene.things[0].position
    if position == "center" and rng.random() < 0.6:
        return ""
    return rng.choice(PLACES[position])


def _background(scene: Scene, rng: random.Random, tags: bool) -> list[Segment]:
    """The words for the ground; a white one is often not named."""
    if scene.background == "white" and rng.random() < 0.5:
        return []
    colour = _word(scene.background, rng)
    if tags:
        return [(f"{colour} background", 1.0)]
    forms = [f"on {_article(colour)} {colour} background"] * 6
    forms += [f"against {_article(colour)} {colour} background", f"on {colour}"]
    return [(rng.choice(forms), 1.0)]


def _partial(scene: Scene, rng: random.Random) -> str:
    """A part of what a scene shows, of the kind that negative prompts are made of."""
    thing = rng.choice(scene.things)
    parts = [
        _word(thing.colour, rng),
        _word(thing.shape, rng),
        f"a {_word(thing.shape, rng)}",
        f"{thing.colour} {thing.shape}",
        f"{_article(thing.colour)} {thing.colour} {thing.shape}",
        f"{scene.background} background",
        f"{_article(scene.background)} {scene.background} background",
        f"a {thing.shape} on {_article(scene.background)} {scene.background} background",
        f"{_word(thing.size, rng)} {thing.shape}",
    ]
    if len(scene.things) == 1:
        parts += [_word(thing.size, rng), rng.choice(PLACES[thing.position])]
    else:
        parts.append(" and ".join(f"a {t.shape}" for t in scene.things))
    return rng.choice(parts)


def _fluff(rng: random.Random) -> list[Segment]:
    """A few quality tags or random words, some of them weighted."""
    weight = rng.uniform(0.8, 1.4) if rng.random() < 0.2 else 1.0
    if rng.random() < 0.5:
        text = " , ".join(rng.sample(TAGS, rng.randint(1, 4)))
    else:
        text = random_words(rng, rng.randint(1, 5), RESERVED)
    return [(text, weight)]


def _with_fluff(segments: list[Segment], rng: random.Random) -> list[Segment]:
    comma = (",", 1.0)
    match rng.randrange(4):
        case 0:
            return [*_fluff(rng), comma, *segments]
        case 1:
            return [*segments, comma, *_fluff(rng)]
        case 2:
            return [*_fluff(rng), comma, *segments, comma, *_fluff(rng)]
    return [(rng.choice(LEADS), 1.0), *segments]


def joined(segments: list[Segment]) -> str:
    """A caption as one line of text, weights left out."""
    text = " ".join(text for text, _ in segments)
    for mark in string.punctuation:
        text = text.replace(f" {mark}", mark)
    return text
