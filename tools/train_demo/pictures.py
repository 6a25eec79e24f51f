"""Pictures drawn by code: one or two coloured shapes on a flat background.

Lengths are fractions of the picture's shorter side; a radius is half a shape's extent.
"""

import math
import random
import zlib
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Points = list[tuple[float, float]]

COLOURS: dict[str, Rgb] = {
    "red": (220, 30, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 225, 40),
    "green": (30, 150, 50),
    "cyan": (40, 210, 220),
    "blue": (35, 60, 215),
    "purple": (130, 40, 170),
    "pink": (255, 150, 190),
    "brown": (120, 70, 30),
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
    "black": (0, 0, 0),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
SIZES: dict[str, float] = {"small": 0.13, "medium": 0.21, "large": 0.32}
POSITIONS: dict[str, tuple[int, int]] = {
    "center": (0, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "left": (-1, 0),
    "right": (1, 0),
}
STYLES = ("filled", "outline", "striped")

PAIR_SIZES: dict[str, float] = {"small": 0.11, "medium": 0.17, "large": 0.21}
"""Radii where two shapes share a picture."""

CORNERS: dict[str, Points] = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)],
    "diamond": [(0.0, -1.0), (0.8, 0.0), (0.0, 1.0), (-0.8, 0.0)],
    "cross": [
        (-0.34, -0.97), (0.34, -0.97), (0.34, -0.34), (0.97, -0.34), (0.97, 0.34), (0.34, 0.34),
        (0.34, 0.97), (-0.34, 0.97), (-0.34, 0.34), (-0.97, 0.34), (-0.97, -0.34), (-0.34, -0.34),
    ],
}  # fmt: skip

OUTLINE = 0.26
"""Thickness of an outlined shape's line, as a share of its radius."""

RING_HOLE = 0.55
"""Radius of a ring's hole, as a share of the ring's radius."""

HELD_OUT_SHARE = 0.05


@dataclass(frozen=True)
class Thing:
    """One shape of a picture. `area` multiplies its area; a prompt weight asks for that."""

    shape: str
    colour: str
    size: str = "medium"
    position: str = "center"
    area: float = 1.0


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one thing anywhere, or two things, first left, second right."""

    things: tuple[Thing, ...]
    background: str
    style: str = "filled"


@dataclass(frozen=True)
class Placed:
    """A thing's place in a picture of `width` × `height`: centre and radius in pixels."""

    x: float
    y: float
    radius: float


def polygon(shape: str) -> Points | None:
    """Corners of a shape inside the square [-1, 1]², y downwards; None for the round ones."""
    if shape == "star":
        return [_polar(1.05 if i % 2 == 0 else 0.42, i * math.pi / 5) for i in range(10)]
    if shape == "heart":
        return [_heart(i * 2 * math.pi / 48) for i in range(48)]
    return CORNERS.get(shape)


def _polar(radius: float, angle: float) -> tuple[float, float]:
    """The point at `angle` from the upward axis, clockwise, in radians."""
    return radius * math.sin(angle), 0.06 - radius * math.cos(angle)


def _heart(angle: float) -> tuple[float, float]:
    """A point of the well-known heart curve, `angle` in radians."""
    x = 16 * math.sin(angle) ** 3
    y = 13 * math.cos(angle) - 5 * math.cos(2 * angle)
    y -= 2 * math.cos(3 * angle) + math.cos(4 * angle)
    return x / 16.5, -(y + 2.5) / 15.5


def place(scene: Scene, width: int, height: int, rng: random.Random) -> list[Placed]:
    """Where each thing of a scene goes, with a little jitter drawn from `rng`."""
    side = min(width, height)
    if len(scene.things) == 1:
        return [_place_one(scene.things[0], width, height, rng)]
    places = []
    for thing, x in zip(scene.things, (0.27, 0.73), strict=True):
        radius = PAIR_SIZES[thing.size] * math.sqrt(thing.area) * rng.uniform(0.95, 1.05)
        dx, dy = rng.uniform(-0.015, 0.015), rng.uniform(-0.03, 0.03)
        places.append(Placed((x + dx) * width, (0.5 + dy) * height, radius * side))
    return places


def _place_one(thing: Thing, width: int, height: int, rng: random.Random) -> Placed:
    side = min(width, height)
    radius = SIZES[thing.size] * math.sqrt(thing.area) * rng.uniform(0.95, 1.05)
    radius = min(radius, 0.42)
    reach = min(0.25, 0.47 - radius)
    right, down = POSITIONS[thing.position]
    x = 0.5 + right * reach + rng.uniform(-0.02, 0.02)
    y = 0.5 + down * reach + rng.uniform(-0.02, 0.02)
    return Placed(x * width, y * height, radius * side)


def shape_mask(shape: str, style: str, size: tuple[int, int], at: Placed) -> Image.Image:
    """A mask ("L", 0 or 255, not smoothed) of one shape in a picture of `size` pixels."""
    mask = Image.new("L", size, 0)
    _fill(mask, shape, at, 1.0, 255)
    if shape == "ring":
        _fill(mask, "circle", at, RING_HOLE, 0)
    if style == "outline":
        _hollow(mask, shape, at)
    elif style == "striped":
        _stripe(mask, at)
    return mask


def _fill(mask: Image.Image, shape: str, at: Placed, scale: float, value: int) -> None:
    draw = ImageDraw.Draw(mask)
    radius = at.radius * scale
    corners = polygon(shape)
    if corners is None:
        draw.ellipse((at.x - radius, at.y - radius, at.x + radius, at.y + radius), fill=value)
    else:
        draw.polygon([(at.x + x * radius, at.y + y * radius) for x, y in corners], fill=value)


def _hollow(mask: Image.Image, shape: str, at: Placed) -> None:
    """Leaves a line of the shape: a smaller copy about its middle is cut out."""
    if shape == "ring":
        _fill(mask, "circle", at, 0.82, 0)
        _fill(mask, "circle", at, RING_HOLE, 255)
        _fill(mask, "circle", at, RING_HOLE - 0.18, 0)
        return
    middle = {"triangle": 0.30, "star": 0.06, "heart": -0.08}.get(shape, 0.0)
    scale = 1 - OUTLINE * {"triangle": 1.7, "star": 1.7, "diamond": 1.4}.get(shape, 1.0)
    shifted = replace(at, y=at.y + middle * at.radius * (1 - scale))
    if shape == "cross":
        _hollow_cross(mask, at)
    else:
        _fill(mask, shape, shifted, scale, 0)


def _hollow_cross(mask: Image.Image, at: Placed) -> None:
    draw = ImageDraw.Draw(mask)
    long, thin = 0.97 - 0.21, 0.34 - 0.21
    for x, y in ((long, thin), (thin, long)):
        box = (at.x - x * at.radius, at.y - y * at.radius)
        draw.rectangle((*box, at.x + x * at.radius, at.y + y * at.radius), fill=0)


def _stripe(mask: Image.Image, at: Placed) -> None:
    """Cuts two horizontal gaps out of a shape, which leaves three bars."""
    draw = ImageDraw.Draw(mask)
    pitch = at.radius * 2 / 2.5
    for i in range(2):
        top = at.y - at.radius + pitch * (i + 0.5)
        draw.rectangle((0, top, mask.width, top + pitch * 0.5), fill=0)


def draw(scene: Scene, width: int, height: int, rng: random.Random) -> Image.Image:
    """The picture of a scene, RGB, smoothed by drawing it larger and averaging."""
    factor = 4 if max(width, height) <= 192 else 2
    size = (width * factor, height * factor)
    picture = Image.new("RGB", size, COLOURS[scene.background])
    for thing, at in zip(scene.things, place(scene, *size, rng), strict=True):
        mask = shape_mask(thing.shape, scene.style, size, at)
        picture.paste(COLOURS[thing.colour], (0, 0), mask)
    return picture.reduce(factor)


def held_out(scene: Scene) -> bool:
    """Whether a scene is kept from training; a fixed 5 % of all combinations."""
    parts = [scene.background, str(len(scene.things))]
    for thing in scene.things:
        parts += [thing.shape, thing.colour, thing.size, thing.position]
    bucket = zlib.crc32(" ".join(parts).encode()) % 1000
    return bucket < 1000 * HELD_OUT_SHARE


def random_scene(rng: random.Random, style: str = "filled") -> Scene:
    """A scene of any kind, held out or not. White grounds, medium and centred are favoured."""
    palette = list(COLOURS)
    background = "white" if rng.random() < 0.15 else rng.choice(palette)
    others = [name for name in palette if name != background]
    if rng.random() < 0.30:
        return Scene(_pair(rng, others), background, style)
    size = "medium" if rng.random() < 0.25 else rng.choice(list(SIZES))
    position = "center" if rng.random() < 0.4 else rng.choice(list(POSITIONS))
    thing = Thing(rng.choice(SHAPES), rng.choice(others), size, position, _area(rng, 0.1))
    return Scene((thing,), background, style)


def _pair(rng: random.Random, colours: list[str]) -> tuple[Thing, ...]:
    sizes = ["medium" if rng.random() < 0.7 else rng.choice(list(PAIR_SIZES)) for _ in range(2)]
    things = [Thing(rng.choice(SHAPES), rng.choice(colours), size) for size in sizes]
    which = rng.randrange(2)
    things[which] = replace(things[which], area=_area(rng, 0.3))
    return tuple(things)


def _area(rng: random.Random, chance: float) -> float:
    """1, or with `chance` another factor of a thing's area."""
    return rng.uniform(0.25, 1.6) if rng.random() < chance else 1.0


def training_scene(rng: random.Random, style: str = "filled") -> Scene:
    """A scene that may be trained on."""
    while held_out(scene := random_scene(rng, style)):
        pass
    return scene


def held_out_scene(rng: random.Random, style: str = "filled") -> Scene:
    """A scene kept from training, with every thing at its plain size."""
    while True:
        scene = random_scene(rng, style)
        things = tuple(replace(thing, area=1.0) for thing in scene.things)
        if held_out(scene := replace(scene, things=things)):
            return scene


def clutter(width: int, height: int, rng: random.Random) -> Image.Image:
    """Many random shapes in any colour: teaches the autoencoder more than the palette."""
    factor = 2
    size = (width * factor, height * factor)
    picture = Image.new("RGB", size, _any_colour(rng))
    if rng.random() < 0.5:
        ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize(size)
        picture.paste(_any_colour(rng), (0, 0), ramp)
    for _ in range(rng.randint(1, 8)):
        at = Placed(rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(0.05, 0.4) * min(size))
        mask = shape_mask(rng.choice(SHAPES), rng.choice(STYLES), size, at)
        picture.paste(_any_colour(rng), (0, 0), mask)
    return picture.reduce(factor)


def _any_colour(rng: random.Random) -> Rgb:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)
