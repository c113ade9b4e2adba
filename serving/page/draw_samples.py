"""`python -m serving.page.draw_samples`: draws the page's sample images, so that none of a data set's is shipped.

Plain scenes at 256 x 256 pixels, scaled down to 64: what a network for CIFAR-10 should recognize at a glance.
"""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

FOLDER = Path(__file__).parent / "samples" / "cifar10"
SIDE, SHOWN = 256, 64
Colour = tuple[int, int, int]


def _gradient(top: Colour, bottom: Colour) -> Image.Image:
    image = Image.new("RGB", (1, SIDE))
    for y in range(SIDE):
        share = y / (SIDE - 1)
        image.putpixel((0, y), tuple(round(a + share * (b - a)) for a, b in zip(top, bottom, strict=True)))
    return image.resize((SIDE, SIDE))


def _speckle(image: Image.Image, box: tuple[int, int, int, int], amount: int, seed: int) -> None:
    """Roughens a part of the picture, as grass, water or asphalt is rough."""
    rng = random.Random(seed)
    left, top, right, bottom = box
    for y in range(top, bottom, 3):
        for x in range(left, right, 3):
            shift = rng.randint(-amount, amount)
            red, green, blue = image.getpixel((x, y))  # type: ignore[misc]
            colour = tuple(min(max(value + shift, 0), 255) for value in (red, green, blue))
            image.paste(colour, (x, y, x + 3, y + 3))


def airplane() -> Image.Image:
    """An airliner from the side, in a clear sky."""
    image = _gradient((86, 140, 205), (190, 215, 238))
    pen = ImageDraw.Draw(image)
    pen.ellipse((20, 112, 232, 150), fill=(236, 238, 242))
    pen.polygon([(40, 128), (14, 76), (40, 76), (84, 118)], fill=(196, 60, 52))
    pen.polygon([(120, 134), (66, 196), (92, 198), (166, 138)], fill=(150, 158, 170))
    pen.polygon([(126, 118), (96, 84), (114, 84), (164, 118)], fill=(170, 178, 190))
    pen.ellipse((92, 158, 122, 174), fill=(96, 102, 114))
    pen.line((30, 142, 226, 140), fill=(168, 174, 186), width=5)
    pen.polygon([(206, 118), (226, 124), (206, 126)], fill=(40, 52, 70))
    return image


def automobile() -> Image.Image:
    """A red car from the side, on asphalt."""
    image = _gradient((205, 212, 218), (178, 184, 188))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 168, SIDE, SIDE), fill=(112, 112, 116))
    _speckle(image, (0, 168, SIDE, SIDE), 16, 1)
    pen.ellipse((10, 186, 246, 214), fill=(70, 70, 74))
    pen.polygon([(62, 124), (92, 82), (168, 82), (206, 124)], fill=(176, 22, 26))
    pen.polygon([(74, 122), (98, 90), (126, 90), (126, 122)], fill=(44, 58, 72))
    pen.polygon([(134, 90), (164, 90), (192, 122), (134, 122)], fill=(44, 58, 72))
    pen.rounded_rectangle((14, 120, 244, 178), 24, fill=(204, 30, 34))
    pen.line((20, 150, 240, 150), fill=(150, 16, 20), width=4)
    for x in (66, 192):
        pen.ellipse((x - 29, 150, x + 29, 208), fill=(24, 24, 26))
        pen.ellipse((x - 15, 164, x + 15, 194), fill=(176, 178, 182))
    pen.ellipse((228, 130, 244, 146), fill=(250, 240, 190))
    return image


def ship() -> Image.Image:
    """A freighter at sea."""
    image = _gradient((150, 190, 222), (214, 226, 234))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 158, SIDE, SIDE), fill=(38, 84, 124))
    _speckle(image, (0, 158, SIDE, SIDE), 18, 2)
    pen.polygon([(16, 126), (240, 126), (214, 186), (44, 186)], fill=(36, 44, 60))
    pen.polygon([(36, 168), (222, 168), (214, 186), (44, 186)], fill=(156, 44, 40))
    pen.rectangle((56, 88, 116, 126), fill=(240, 240, 238))
    pen.rectangle((70, 60, 104, 88), fill=(228, 228, 226))
    pen.rectangle((80, 32, 96, 60), fill=(196, 64, 48))
    for x in (128, 160, 192):
        pen.rectangle((x, 100, x + 26, 126), fill=(198, 140, 62))
    pen.line((214, 126, 214, 56), fill=(60, 66, 78), width=5)
    for x in (62, 78, 94):
        pen.rectangle((x, 98, x + 9, 108), fill=(58, 78, 100))
    return image


def truck() -> Image.Image:
    """A lorry with a box body, from the side."""
    image = _gradient((170, 200, 228), (214, 222, 228))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 186, SIDE, SIDE), fill=(118, 116, 114))
    _speckle(image, (0, 186, SIDE, SIDE), 16, 3)
    pen.rectangle((10, 50, 170, 172), fill=(238, 238, 234))
    pen.rectangle((10, 50, 170, 60), fill=(206, 206, 202))
    pen.polygon([(178, 84), (220, 84), (246, 130), (246, 172), (178, 172)], fill=(212, 112, 32))
    pen.polygon([(190, 94), (216, 94), (236, 130), (190, 130)], fill=(46, 60, 76))
    pen.rectangle((6, 170, 248, 186), fill=(50, 50, 54))
    for x in (44, 100, 212):
        pen.ellipse((x - 24, 164, x + 24, 212), fill=(24, 24, 26))
        pen.ellipse((x - 11, 177, x + 11, 199), fill=(168, 170, 174))
    return image


def horse() -> Image.Image:
    """A brown horse on a meadow, from the side."""
    image = _gradient((168, 200, 226), (206, 220, 214))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 150, SIDE, SIDE), fill=(104, 142, 66))
    _speckle(image, (0, 150, SIDE, SIDE), 26, 4)
    brown, dark = (122, 74, 40), (62, 36, 20)
    pen.polygon([(56, 104), (30, 116), (22, 176), (36, 178), (46, 128), (66, 116)], fill=dark)
    pen.ellipse((48, 92, 188, 158), fill=brown)
    pen.polygon([(152, 112), (186, 52), (214, 62), (186, 138)], fill=brown)
    pen.polygon([(186, 50), (210, 44), (246, 86), (236, 100), (204, 84)], fill=brown)
    pen.polygon([(192, 52), (198, 32), (206, 50)], fill=brown)
    pen.polygon([(148, 104), (184, 46), (194, 50), (166, 112)], fill=dark)
    for x, lean in ((64, -6), (86, 4), (150, -4), (172, 6)):
        pen.polygon([(x - 10, 138), (x + 12, 138), (x + 6 + lean, 226), (x - 6 + lean, 226)], fill=brown)
        pen.rectangle((x - 7 + lean, 216, x + 7 + lean, 228), fill=dark)
    pen.ellipse((212, 62, 218, 68), fill=(16, 10, 8))
    return image


def deer() -> Image.Image:
    """A deer with antlers among trees."""
    image = _gradient((88, 112, 66), (122, 140, 84))
    pen = ImageDraw.Draw(image)
    _speckle(image, (0, 0, SIDE, SIDE), 34, 5)
    tan, pale, dark = (168, 120, 72), (214, 186, 148), (74, 52, 34)
    pen.ellipse((58, 112, 172, 166), fill=tan)
    pen.polygon([(144, 130), (168, 70), (192, 78), (172, 150)], fill=tan)
    pen.polygon([(164, 62), (190, 58), (222, 88), (212, 98), (178, 90)], fill=tan)
    pen.polygon([(158, 66), (144, 52), (170, 60)], fill=tan)
    pen.ellipse((50, 122, 72, 150), fill=pale)
    for x, lean in ((72, -4), (88, 4), (142, -3), (158, 5)):
        pen.polygon([(x - 7, 154), (x + 8, 154), (x + 4 + lean, 236), (x - 4 + lean, 236)], fill=tan)
    for branch in ([(172, 62), (158, 30), (140, 14)], [(158, 30), (166, 10)], [(180, 60), (192, 28), (212, 12)]):
        pen.line(branch, fill=dark, width=6)
    pen.line([(192, 28), (186, 8)], fill=dark, width=6)
    pen.ellipse((188, 70, 195, 77), fill=(16, 12, 8))
    return image


SCENES = (airplane, automobile, deer, horse, ship, truck)


def main() -> None:
    """Writes one PNG a scene, named by its class."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for scene in SCENES:
        soft = scene().filter(ImageFilter.GaussianBlur(2))
        soft.resize((SHOWN, SHOWN), Image.Resampling.LANCZOS).save(FOLDER / f"{scene.__name__}.png", optimize=True)


if __name__ == "__main__":
    main()
