"""The data set *glyphs*: letters and digits of the fonts that matplotlib ships, distorted, on cluttered backgrounds.

62 classes (0-9, A-Z, a-z), images of 32 x 32 x 3 bytes, 20,000 for training and 4,000 for the test, which has faces of
its own. Every image follows from the seed, the split and its number alone, so that a part of a set is a part of every
larger one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import string
from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFilter, ImageFont

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
SIZE = 32
# Of the drawing: what is stored by another version is not read.
VERSION = 2

# All faces in which the 62 characters are letters and digits, by family.
FAMILIES = {
    "DejaVu Sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique"),
    "DejaVu Sans Mono": (
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSansMono-BoldOblique",
        "DejaVuSansMono-Oblique",
    ),
    "DejaVu Serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "DejaVuSerif-Italic"),
    "STIX": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic"),
    "Computer Modern": ("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"),
}
TEST_FACES = ("DejaVuSans-BoldOblique", "DejaVuSansMono", "DejaVuSerif-Italic", "STIXGeneralBol", "cmss10")
TRAIN_FACES = tuple(face for faces in FAMILIES.values() for face in faces if face not in TEST_FACES)

# Images are drawn this many times larger.
_ENLARGED = 3
_CANVAS = SIZE * _ENLARGED
# Pixels per em on the canvas, and where the baseline is: capital letters are then half as high as the image.
_FONT_SIZE = 66
_BASELINE = 0.74
# Colors drawn at a time.
_INKS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difficulty:
    """How much the glyphs are distorted; lengths are shares of the image.

    Attributes:
        rotation: largest angle, in degrees.
        shear: largest horizontal shift per height.
        scale: largest relative change of the size; a and A, c and C differ by more.
        shift: largest move along each axis.
        clutter: most strokes and pieces of other glyphs.
        noise: largest standard deviation of the noise of pixels, of 255.
        contrast: least difference of brightness between glyph and background, of 255.
    """

    rotation: float = 10.0
    shear: float = 0.15
    scale: float = 0.1
    shift: float = 0.06
    clutter: int = 2
    noise: float = 10.0
    contrast: float = 90.0


def draw(
    count: int,
    faces: Sequence[str],
    *,
    seed: int,
    characters: str = CHARACTERS,
    difficulty: Difficulty | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a set.

    Args:
        count: number of images; the classes take turns.
        faces: names of faces, as in `FAMILIES`, to choose from.
        seed: of everything random.
        characters: the classes, in order.
        difficulty: how much is distorted.

    Returns:
        Images (count, 32, 32, 3) and classes (count,), both uint8.

    Raises:
        ValueError: an unknown face.
    """
    known = {face for family in FAMILIES.values() for face in family}
    unknown = sorted(set(faces) - known)
    if unknown or not faces:
        raise ValueError(
            f"Got the faces {', '.join(unknown) or '(none)'}, expected some of {', '.join(sorted(known))}."
        )
    labels = (np.arange(count) % len(characters)).astype(np.uint8)
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for number, label in enumerate(labels):
        random = np.random.default_rng((seed, number))
        images[number] = _image(characters[label], tuple(faces), random, difficulty or Difficulty())
    return images, labels


@functools.cache
def mask(face: str, character: str) -> Image.Image:
    """A glyph in white on black, its advance centered, on the canvas."""
    path = pathlib.Path(mpl.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    font = ImageFont.truetype(str(path), _FONT_SIZE)
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    position = (_CANVAS / 2, _CANVAS * _BASELINE)
    ImageDraw.Draw(canvas).text(position, character, fill=255, font=font, anchor="ms")
    return canvas


def letters_and_digits(path: pathlib.Path) -> bool:
    """Whether the characters of a font file are what they should be, each with an outline of its own."""
    font = FT2Font(str(path))
    glyphs = font.get_charmap()
    if not all(ord(character) in glyphs for character in CHARACTERS):
        return False
    names = [font.get_glyph_name(glyphs[ord(character)]) for character in CHARACTERS]
    return len(set(names)) == len(CHARACTERS) and names[0] == "zero" and names[10:] == list(CHARACTERS[10:])


def _image(character: str, faces: tuple[str, ...], random: np.random.Generator, difficulty: Difficulty) -> np.ndarray:
    glyph = _distorted(mask(faces[random.integers(len(faces))], character), random, difficulty)
    strokes = _stroke_noise(glyph, random)
    clutter = _clutter(faces, random, difficulty)
    background, ink, other_ink = _colors(random, difficulty)
    image = background * (1 - clutter[..., None]) + other_ink * clutter[..., None]
    image = image * (1 - strokes[..., None]) + ink * strokes[..., None]
    image += random.normal(0, random.uniform(0, difficulty.noise), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _distorted(glyph: Image.Image, random: np.random.Generator, difficulty: Difficulty) -> Image.Image:
    """The glyph under a random affine map around the middle of the canvas."""
    angle = math.radians(random.uniform(-difficulty.rotation, difficulty.rotation))
    shear = random.uniform(-difficulty.shear, difficulty.shear)
    scales = np.exp(random.uniform(-1, 1) * difficulty.scale + random.uniform(-0.5, 0.5, 2) * difficulty.scale)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = rotation @ np.array([[1, shear], [0, 1]]) @ np.diag(scales)
    middle = np.full(2, _CANVAS / 2)
    moved = middle + random.uniform(-difficulty.shift, difficulty.shift, 2) * _CANVAS
    back = np.linalg.inv(matrix)  # Pillow asks for the map from the new image to the old one.
    offset = middle - back @ moved
    coefficients = (*back[0], offset[0], *back[1], offset[1])
    return glyph.transform(glyph.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def _stroke_noise(glyph: Image.Image, random: np.random.Generator) -> np.ndarray:
    """How much ink each pixel has, 0 to 1: strokes a little thicker or thinner, uneven, and blurred."""
    weight = random.integers(3)
    if weight:
        glyph = glyph.filter((ImageFilter.MaxFilter if weight == 1 else ImageFilter.MinFilter)(3))
    ink = _reduced(glyph.filter(ImageFilter.GaussianBlur(random.uniform(0, 3))))
    return ink * np.clip(1 - random.uniform(0, 0.6) * _blotches(random), 0, 1)


def _clutter(faces: tuple[str, ...], random: np.random.Generator, difficulty: Difficulty) -> np.ndarray:
    """Strokes, and pieces of other glyphs at the border, behind the glyph."""
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    draw = ImageDraw.Draw(canvas)
    for _ in range(random.integers(difficulty.clutter + 1)):
        strength = int(random.integers(80, 255))
        if random.random() < 0.5:
            ends = [tuple(end) for end in random.uniform(0, _CANVAS, (2, 2))]
            draw.line(ends, fill=strength, width=int(random.integers(2, 7)))
            continue
        character = CHARACTERS[random.integers(len(CHARACTERS))]
        piece = mask(faces[random.integers(len(faces))], character)
        direction = random.uniform(0, 2 * math.pi)
        distance = random.uniform(0.55, 0.75) * _CANVAS
        position = (round(distance * math.cos(direction)), round(distance * math.sin(direction)))
        canvas.paste(strength, position, piece)
    return _reduced(canvas)


def _colors(random: np.random.Generator, difficulty: Difficulty) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A background with a gradient and blotches, the color of the glyph, and that of the clutter."""
    ends = random.uniform(0, 255, (2, 3))
    ends[1] = ends[0] + random.uniform(-60, 60, 3)
    direction = random.uniform(0, 2 * math.pi)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) - 0.5
    share = np.clip(0.5 + rows * math.sin(direction) + columns * math.cos(direction), 0, 1)[..., None]
    background = ends[0] * (1 - share) + ends[1] * share + random.uniform(0, 40) * (_blotches(random)[..., None] - 0.5)
    brightness = float(background.mean())
    darker = brightness > 127.5 if random.random() < 0.8 else brightness > 255 - difficulty.contrast - 1
    ink = _ink(random, lambda inks: (brightness - inks) * (1 if darker else -1) > difficulty.contrast)
    return background, ink, np.clip(ink + random.uniform(-80, 80, 3), 0, 255)


def _ink(random: np.random.Generator, suits: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The first random color with a brightness that suits; one of many thousands may, so that they are drawn in bulk.

    `random` goes on behind that color, as if it had been the last one drawn.
    """
    while True:
        state = random.bit_generator.state
        inks = random.uniform(0, 255, (_INKS, 3))
        (suiting,) = np.nonzero(suits(inks.mean(axis=1)))
        if suiting.size:
            random.bit_generator.state = state
            return random.uniform(0, 255, (suiting[0] + 1, 3))[-1]


def _blotches(random: np.random.Generator) -> np.ndarray:
    """Smooth noise from 0 to 1."""
    coarse = Image.fromarray(random.integers(0, 256, (6, 6)).astype(np.uint8))
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float64) / 255.0


def _reduced(canvas: Image.Image) -> np.ndarray:
    """The canvas in the size of an image, 0 to 1."""
    return np.asarray(canvas.reduce(_ENLARGED), np.float64) / 255.0
