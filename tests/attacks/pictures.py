"""Pictures of every format that Pillow writes, damaged at random: `decode` returns pixels or refuses, nothing else.

    python tests/attacks/pictures.py 100000

prints a line for each format and exits with status 1 if any other exception escaped.
"""

import io
import random
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from attacks.random_bytes import damage
from gated_prompt.errors import DataError
from gated_prompt.images import decode

MOST_PIXELS = 2_000_000  # a damaged size may ask for gigabytes
SEED = 11
PIXELS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))


def whole_pictures() -> dict[str, bytes]:
    """One small picture by format, with EXIF where there is room for it, without those that Pillow lacks here."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "camera", 72.5
    found = {}
    for kind in sorted(Image.SAVE):
        for mode in ("RGB", "P", "L", "1", "RGBA"):
            buffer = io.BytesIO()
            try:
                settings = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO") else {}
                if kind in ("MPO", "GIF"):
                    settings |= {"save_all": True, "append_images": [PIXELS.rotate(180)]}
                PIXELS.convert(mode).save(buffer, kind, **settings)
                decode(buffer.getvalue())
            except (OSError, KeyError, ValueError, DataError, AttributeError):  # a format or mode without support
                continue
            found[kind] = buffer.getvalue()
            break
    return found


def attack(count: int, seed: int = SEED) -> tuple[Counter[str], dict[str, str]]:
    """Outcomes of `count` damaged pictures, and the first exception of each kind that escaped -> the format."""
    random_ = random.Random(seed)
    pictures = list(whole_pictures().items())
    outcomes: Counter[str] = Counter()
    escaped: dict[str, str] = {}
    for number in range(count):
        kind, data = pictures[number % len(pictures)]
        try:
            image = decode(damage(data, random_), most_pixels=MOST_PIXELS)
            assert image.mode == "RGB" and min(image.size) > 0
            outcomes[f"{kind} read"] += 1
        except DataError:
            outcomes[f"{kind} refused"] += 1
        except Exception as error:  # what this looks for
            escaped.setdefault(f"{type(error).__name__}: {error}", kind)
            outcomes[f"{kind} escaped"] += 1
    return outcomes, escaped


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    outcomes, escaped = attack(int(sys.argv[1]))
    for outcome, times in sorted(outcomes.items()):
        print(f"{outcome:20}{times}")
    print(f"{outcomes.total()} pictures, {len(escaped)} kinds of exceptions escaped {escaped}")
    sys.exit(bool(escaped))
