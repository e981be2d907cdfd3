"""Local copies of Hub data sets in miniature pixels: parquet files as `push_to_hub` writes them.

Every image is one pixel whose colour is its row number, so a test can tell which row it got.
"""

import struct
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def pixel_of_row(row: int) -> bytes:
    """A 1x1 BMP: by far the quickest format to make a hundred thousand times."""
    header = struct.pack("<2sIHHI", b"BM", 58, 0, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, 1, 1, 1, 24, 0, 4, 0, 0, 0, 0
    )
    return header + struct.pack("<BBBB", row & 255, row >> 8 & 255, row >> 16 & 255, 0)


def row_of_pixel(image: Image.Image) -> int:
    red, green, blue = image.getpixel((0, 0))
    return red << 16 | green << 8 | blue


def write_split(
    folder: Path,
    split: str,
    size: int,
    *,
    image: str = "image",
    paths: list[str] | None = None,
    names: dict[str, list[str]] | None = None,
    first_row: int = 0,
    **columns: list,
) -> None:
    """Writes `<folder>/data/<split>-00000-of-00001.parquet`; `names` turns a column into class labels."""
    features = {image: datasets.Image()}
    arrays = [
        pa.array(
            [{"bytes": pixel_of_row(first_row + row), "path": paths[row] if paths else None} for row in range(size)],
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        )
    ]
    for name, values in columns.items():
        array = pa.array(values)
        arrays.append(array)
        features[name] = (
            datasets.ClassLabel(names=names[name])
            if names and name in names
            else datasets.Features.from_arrow_schema(pa.schema([(name, array.type)]))[name]
        )
    schema = datasets.Features(features).arrow_schema
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays, schema=schema), folder / "data" / f"{split}-00000-of-00001.parquet")
