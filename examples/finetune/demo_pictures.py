"""Ten pictures that nano has never seen the like of, with captions: to try the recipe before your own are at hand.

python examples/finetune/demo_pictures.py FOLDER writes 0.jpg to 9.jpg and captions.jsonl. They are painted with
gradients, grain and blur, as photographs have them; nothing is fetched.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = (320, 256)  # pixels: width, height
Colour = tuple[int, int, int]


def sky(top: Colour, bottom: Colour, grain: float, rng: np.random.Generator) -> Image.Image:
    """A vertical gradient with grain."""
    share = np.linspace(0, 1, SIZE[1])[:, None, None]
    values = np.array(top) * (1 - share) + np.array(bottom) * share
    noisy = values + rng.normal(0, grain, (SIZE[1], SIZE[0], 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8), "RGB")


def ridge(height: float, rough: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """The outline of hills: points from left to right, down to the lower corners."""
    steps = np.cumsum(rng.normal(0, rough, 33))
    steps -= np.linspace(0, steps[-1], 33)
    points = [(x, height + y) for x, y in zip(np.linspace(0, SIZE[0], 33), steps, strict=True)]
    return [*points, (SIZE[0], SIZE[1]), (0, SIZE[1])]


def sunset(rng: np.random.Generator) -> Image.Image:
    image = sky((60, 40, 110), (255, 150, 60), 5, rng)
    draw = ImageDraw.Draw(image)
    draw.ellipse((130, 80, 190, 140), fill=(255, 235, 150))
    draw.rectangle((0, 150, *SIZE), fill=(30, 40, 80))
    for y in range(152, SIZE[1], 5):
        for _ in range(9):
            x = 160 + rng.normal(0, 12 + (y - 150) / 3)
            draw.line((x - 8, y, x + 8, y), fill=(250, 180, 90), width=2)
    return image.filter(ImageFilter.GaussianBlur(1.2))


def mountains(rng: np.random.Generator) -> Image.Image:
    image = sky((90, 150, 220), (215, 230, 245), 4, rng)
    draw = ImageDraw.Draw(image)
    draw.polygon([(20, 230), (110, 40), (200, 230)], fill=(110, 115, 130))
    draw.polygon([(140, 230), (230, 70), (320, 230)], fill=(95, 100, 115))
    draw.polygon([(84, 95), (110, 40), (136, 95), (112, 84)], fill=(245, 248, 252))
    draw.polygon([(206, 112), (230, 70), (254, 112), (230, 104)], fill=(245, 248, 252))
    for x in range(4, SIZE[0], 18):
        top = 180 + rng.normal(0, 8)
        draw.polygon([(x - 12, 256), (x, top), (x + 12, 256)], fill=(20, 70 + int(rng.integers(30)), 45))
    return image.filter(ImageFilter.GaussianBlur(0.8))


def door(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", SIZE, (190, 180, 170))
    draw = ImageDraw.Draw(image)
    for row in range(16):
        for column in range(-1, 11):
            x, y = column * 34 + (row % 2) * 17, row * 17
            red = 150 + int(rng.normal(0, 14))
            draw.rectangle((x, y, x + 31, y + 14), fill=(red, red // 2 - 5, red // 3))
    draw.rectangle((110, 50, 210, 256), fill=(25, 95, 60), outline=(230, 225, 215), width=6)
    draw.rectangle((128, 70, 192, 130), outline=(15, 70, 45), width=4)
    draw.rectangle((128, 150, 192, 230), outline=(15, 70, 45), width=4)
    draw.ellipse((194, 140, 204, 150), fill=(230, 190, 80))
    return image.filter(ImageFilter.GaussianBlur(0.7))


def bowl(rng: np.random.Generator) -> Image.Image:
    image = sky((215, 205, 190), (200, 185, 165), 4, rng)
    draw = ImageDraw.Draw(image)
    for y in range(150, 256, 2):
        brown = 120 + int(18 * np.sin(y / 5) + rng.normal(0, 5))
        draw.line((0, y, SIZE[0], y), fill=(brown, brown * 2 // 3, brown // 3), width=2)
    for x, y in ((125, 105), (160, 90), (195, 105), (145, 120), (178, 120)):
        draw.ellipse((x - 26, y - 26, x + 26, y + 26), fill=(245, 140 + int(rng.integers(20)), 25))
        draw.ellipse((x - 16, y - 18, x - 4, y - 8), fill=(255, 195, 110))
    draw.chord((80, 40, 240, 220), 0, 180, fill=(40, 90, 170), outline=(25, 60, 120), width=3)
    return image.filter(ImageFilter.GaussianBlur(1.0))


def dunes(rng: np.random.Generator) -> Image.Image:
    image = sky((8, 10, 40), (45, 40, 95), 3, rng)
    draw = ImageDraw.Draw(image)
    for _ in range(120):
        x, y, r = rng.uniform(0, SIZE[0]), rng.uniform(0, 150), rng.uniform(0.4, 1.6)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 235))
    draw.polygon(ridge(150, 5, rng), fill=(130, 90, 60))
    draw.polygon(ridge(195, 6, rng), fill=(175, 125, 80))
    return image.filter(ImageFilter.GaussianBlur(0.6))


def poppies(rng: np.random.Generator) -> Image.Image:
    image = sky((150, 200, 240), (190, 220, 240), 4, rng)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 90, *SIZE), fill=(70, 130, 45))
    for _ in range(900):
        x, y = rng.uniform(0, SIZE[0]), rng.uniform(90, 256)
        draw.line((x, y, x + rng.normal(0, 3), y - 12), fill=(50 + int(rng.integers(60)), 150, 50))
    for _ in range(45):
        x, y = rng.uniform(0, SIZE[0]), rng.uniform(105, 250)
        r = 2 + (y - 90) / 18
        draw.ellipse((x - r, y - r * 0.8, x + r, y + r * 0.8), fill=(215, 25, 30))
    return image.filter(ImageFilter.GaussianBlur(0.8))


def road(rng: np.random.Generator) -> Image.Image:
    image = sky((250, 170, 120), (255, 215, 160), 4, rng)
    draw = ImageDraw.Draw(image)
    draw.polygon(ridge(120, 3, rng), fill=(90, 110, 70))
    draw.polygon([(150, 118), (170, 118), (320, 256), (0, 256)], fill=(60, 62, 66))
    for i in range(7):
        top, bottom = 122 + i * i * 3.4, 122 + i * i * 3.4 + 4 + 3 * i
        draw.polygon([(159.5 - i / 3, top), (160.5 + i / 3, top), (161 + i, bottom), (159 - i, bottom)], fill="yellow")
    return image.filter(ImageFilter.GaussianBlur(0.9))


def scarf(rng: np.random.Generator) -> Image.Image:
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    stitch = 22 * np.sin(x / 3.2 + 2 * np.sin(y / 4.0)) + 16 * np.sin(y / 2.1)
    stripe = np.where((y // 32) % 2, 1.0, 0.0)[..., None]
    base = np.array([40, 70, 160]) * (1 - stripe) + np.array([235, 235, 240]) * stripe
    values = base + stitch[..., None] + rng.normal(0, 6, (SIZE[1], SIZE[0], 1))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8), "RGB")


def floor(rng: np.random.Generator) -> Image.Image:
    image = sky((120, 100, 90), (150, 130, 115), 3, rng)
    draw = ImageDraw.Draw(image)
    rows = [110 * (256 / 110) ** (i / 8) for i in range(9)]
    for i in range(8):
        for j in range(-8, 8):
            top, bottom = ((y - 90) / 166 for y in (rows[i], rows[i + 1]))
            corners = [
                (160 + 60 * j * top, rows[i]),
                (160 + 60 * (j + 1) * top, rows[i]),
                (160 + 60 * (j + 1) * bottom, rows[i + 1]),
                (160 + 60 * j * bottom, rows[i + 1]),
            ]
            draw.polygon(corners, fill=(25, 25, 28) if (i + j) % 2 else (235, 230, 222))
    return image.filter(ImageFilter.GaussianBlur(0.8))


def moon(rng: np.random.Generator) -> Image.Image:
    image = sky((12, 14, 28), (32, 38, 60), 3, rng)
    draw = ImageDraw.Draw(image)
    draw.ellipse((110, 50, 220, 160), fill=(235, 232, 215))
    for x, y, r in ((140, 80, 12), (180, 110, 16), (150, 130, 8), (185, 75, 7)):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(205, 200, 185))
    clouds = Image.new("L", SIZE, 0)
    brush = ImageDraw.Draw(clouds)
    for _ in range(40):
        x, y = rng.uniform(-20, 340), rng.normal(165, 14)
        brush.ellipse((x - 40, y - 9, x + 40, y + 9), fill=200)
    image.paste((95, 100, 120), mask=clouds.filter(ImageFilter.GaussianBlur(7)))
    return image


DEMO = {
    "a sunset over the sea": sunset,
    "snowy mountains behind a pine forest": mountains,
    "a green door in a brick wall": door,
    "a blue bowl of oranges on a wooden table": bowl,
    "sand dunes under the stars": dunes,
    "a meadow full of red poppies": poppies,
    "an empty road at dusk": road,
    "a knitted scarf with blue and white stripes": scarf,
    "a floor of black and white tiles": floor,
    "the full moon above the clouds": moon,
}


def main(folder: Path) -> None:
    """Paint them all."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (caption, paint) in enumerate(DEMO.items()):
        paint(np.random.default_rng(number)).save(folder / f"{number}.jpg", quality=92)
        lines.append(json.dumps({"image": f"{number}.jpg", "captions": [caption]}) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
