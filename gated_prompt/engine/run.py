#!/usr/bin/env python3
# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Classify images with an exported engine. Needs numpy, pillow, onnxruntime and safetensors, and no PyTorch.

    python run.py photos/*.jpg --adapters birds cars

In your own program:

    from run import Engine
    answers = Engine("folder").classify([Image.open("a.jpg")], ["birds"])
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

GRAPH, ABOUT, FOLDER, SUFFIX = "engine.onnx", "engine.json", "adapters", ".safetensors"
MOST_BYTES = {ABOUT: 2**20, GRAPH: 2**31, SUFFIX: 2**28}  # a larger file is damaged or hostile
KEYS = {"format", "backbone", "backbone_sha256", "depth", "structure", "preparation", "shapes", "features"}
MOST_PIXELS = 4096  # a side of what the graph sees
MOST_ELONGATED = 200  # resizing the short side of a wider strip would need gigabytes
UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
CROP, SQUARE = {"mean", "std", "resize", "crop"}, {"mean", "std", "size", "sampling", "round_to_bytes"}


class EngineError(ValueError):
    """An engine, an adapter or an image cannot be used."""


@dataclass(frozen=True)
class Adapter:
    """An adapter: what the metadata of its file say, and its tensors without an axis for adapters."""

    about: dict[str, Any]
    tensors: dict[str, np.ndarray]


class Engine:
    """A backbone, and the adapters that were asked for.

    Args:
        folder: an exported engine.
        graph: name of the file with the graph.
        threads: number of threads that compute. 0 means one for each core.

    Raises:
        EngineError: a file is missing, damaged or of another engine.

    Example:
        ```python
        from gated_prompt.engine.run import Engine

        gated_prompt.export_engine("engine", "backbone", {"birds": "me/birds", "cars": "me/cars"})
        engine = Engine("engine")
        engine.classify([image], engine.available(), top=1)  # [{"birds": [("wren", 0.9)], "cars": [("van", 0.7)]}]
        ```
    """

    def __init__(self, folder: str | Path, graph: str = GRAPH, threads: int = 0) -> None:
        import onnxruntime

        self.folder, self.about = Path(folder), read_about(Path(folder))
        path = _bounded(self.folder / graph, MOST_BYTES[GRAPH])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:  # from memory: such a graph cannot refer to other files
            self.session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a dozen kinds
            raise EngineError(f"{path} is no graph that onnxruntime takes ({str(error).splitlines()[0]})") from error
        self.inputs = [one.name for one in self.session.get_inputs()]
        wanted = {"pixel_values", "rows", "weight", "bias", *self.about["shapes"]}
        if not {"pixel_values", "weight", "bias"} <= set(self.inputs) <= wanted:
            raise EngineError(f"{path} has the inputs {', '.join(self.inputs)}. {ABOUT} belongs to another graph.")
        self.tasks: dict[str, Adapter] = {}

    def available(self) -> list[str]:
        """Return the names of the adapters in the folder."""
        return sorted(path.name.removesuffix(SUFFIX) for path in (self.folder / FOLDER).glob(f"*{SUFFIX}"))

    def load(self, name: str) -> None:
        """Read an adapter, unless it was read before."""
        if name not in self.tasks:
            path = self.folder / FOLDER / f"{name}{SUFFIX}"
            if Path(name).name != name or not path.is_file():
                raise EngineError(f"there is no adapter {name!r}. Choose from: {', '.join(self.available())}.")
            self.tasks[name] = read_adapter(path, self.about)

    def scores(self, pixels: np.ndarray, names: list[str]) -> list[np.ndarray]:
        """Return scores (C_i,) of each image of `pixels` (B, 3, H, W) from the adapter at its index in `names`."""
        for name in names:
            self.load(name)
        return self.mixed(pixels, [self.tasks[name] for name in names])

    def mixed(self, pixels: np.ndarray, tasks: Sequence[Adapter]) -> list[np.ndarray]:
        """Return scores (C_i,) of each image of `pixels` (B, 3, H, W) from the adapter at the same index of `tasks`.

        Their tensors are stacked here, each once, so a batch costs the same however many adapters are in memory.
        """
        if len(pixels) != len(tasks):
            raise EngineError(f"{len(tasks)} adapters for {len(pixels)} images. Expected one adapter for each image.")
        distinct = list({id(task): task for task in tasks}.values())
        rows = {id(task): row for row, task in enumerate(distinct)}
        classes = max(len(task.tensors["bias"]) for task in distinct)
        feed: dict[str, np.ndarray] = {
            "pixel_values": np.ascontiguousarray(pixels, dtype=np.float32),
            "rows": np.array([rows[id(task)] for task in tasks], dtype=np.int64),
        }
        for key in (*self.about["shapes"], "weight", "bias"):
            feed[key] = np.stack([_padded(key, task.tensors[key], classes) for task in distinct])
        try:
            (found,) = self.session.run(None, {key: feed[key] for key in self.inputs})
        except Exception as error:  # onnxruntime has a dozen kinds
            reason = str(error).splitlines()[0]
            raise EngineError(
                f"{GRAPH} does not compute what {ABOUT} says ({reason}). Export the engine again."
            ) from error
        return [row[: len(task.tensors["bias"])] for row, task in zip(found, tasks, strict=True)]

    def classify(self, images: list[Image.Image], names: list[str], top: int = 3) -> list[dict[str, list[Any]]]:
        """Return for each image the best classes of each adapter with their scores, (name, score) pairs by adapter.

        All adapters see an image in one batch.
        """
        return [self.answers(prepare(upright(image), self.about["preparation"]), names, top) for image in images]

    def answers(self, pixels: np.ndarray, names: list[str], top: int = 3) -> dict[str, list[Any]]:
        """What `classify` says of one image, from its prepared pixels (3, H, W)."""
        scores = self.scores(np.repeat(pixels[None], len(names), 0), names)
        return {name: self._answer(name, row, top) for name, row in zip(names, scores, strict=True)}

    def _answer(self, name: str, scores: np.ndarray, top: int) -> list[Any]:
        about = self.tasks[name].about
        if about["problem"] in ("regression", "numbers"):
            return [(label, float(score)) for label, score in zip(about["names"], scores, strict=True)]
        scores = scores / about["temperature"]
        if about["problem"] in ("multi_label", "labels"):
            shares = 1 / (1 + np.exp(-scores))
        else:
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
        best = np.argsort(-shares, kind="stable")[:top]
        return [(about["names"][place], float(shares[place])) for place in best]


def read_adapter(path: Path, about: dict[str, Any]) -> Adapter:
    """Read the file of an adapter for the engine of which `engine.json` says `about`.

    Raises:
        EngineError: it is damaged, or of another engine.
    """
    from safetensors import safe_open

    told = describe_adapter(path, about)
    try:
        with safe_open(path, "np") as file:
            tensors = {key: file.get_tensor(key) for key in (*about["shapes"], "weight", "bias")}
    except Exception as error:  # safetensors has kinds of its own
        raise EngineError(f"{path} is damaged ({error}). Copy or export it again.") from error
    for key, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise EngineError(f"{path} has values in {key} that are not finite. Copy or export it again.")
    return Adapter(told, tensors)


def describe_adapter(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The metadata of an adapter's file, whose tensors have the shapes of the engine. Their values are not read.

    Raises:
        EngineError: it is damaged, or of another engine.
    """
    from safetensors import safe_open

    _bounded(path, MOST_BYTES[SUFFIX])
    try:
        with safe_open(path, "np") as file:
            told: dict[str, Any] = json.loads((file.metadata() or {})["task"])
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            found = {key: (one.get_dtype(), tuple(one.get_shape())) for key, one in slices.items()}
        names, sha256 = list(told["names"]), told["backbone_sha256"]
        if not told["temperature"] > 0 or not isinstance(told["problem"], str):
            raise ValueError(f"temperature {told['temperature']}, problem {told['problem']}")
    except Exception as error:  # safetensors has kinds of its own, and the header may hold anything
        raise EngineError(f"{path} is damaged ({error}). Copy or export it again.") from error
    if sha256 != about["backbone_sha256"]:
        raise EngineError(f"{path} was exported for another backbone. Export it again for this engine.")
    shapes = {key: tuple(shape) for key, shape in about["shapes"].items()}
    shapes |= {"weight": (len(names), about["features"]), "bias": (len(names),)}
    for key, shape in shapes.items():
        if found.get(key) != ("F32", shape):
            has = "{} {}".format(*found[key]) if key in found else "nothing"
            raise EngineError(f"{path} has {has} as {key}, and this engine takes F32 {shape}")
    return told


def read_about(folder: Path) -> dict[str, Any]:
    """What `engine.json` says.

    Raises:
        EngineError: there is none, or it is damaged.
    """
    path = _bounded(folder / ABOUT, MOST_BYTES[ABOUT])
    try:
        about: dict[str, Any] = json.loads(path.read_text())
        if about["format"] != 1:
            raise EngineError(f"{path} has format {about['format']}. Expected format 1.")
        if KEYS - set(about):
            raise EngineError(f"{path} lacks {', '.join(sorted(KEYS - set(about)))}. Export the engine again.")
        check_preparation(about["preparation"])
        return {**about, "shapes": {str(key): [int(n) for n in shape] for key, shape in about["shapes"].items()}}
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EngineError(f"{path} is damaged ({error!r}). Export the engine again.") from error


def check_preparation(preparation: dict[str, Any]) -> None:
    """Raises:
    EngineError: this program cannot prepare images in that way bit for bit.
    """
    sides = [preparation[key] for key in ("resize", "crop", "size") if key in preparation]
    if not all(type(side) is int and 0 < side <= MOST_PIXELS for side in sides):
        raise EngineError(f"images are prepared with sides of {sides} pixels. Expected 1 to {MOST_PIXELS}.")
    if any(len(preparation[key]) != 3 for key in ("mean", "std")):
        raise EngineError(f"images are prepared with {preparation}. Expected three values for mean and three for std.")
    if set(preparation) == CROP or (set(preparation) == SQUARE and preparation["sampling"] == "tf1"):
        return
    raise EngineError(
        f"images prepared with {', '.join(sorted(preparation))} (sampling {preparation.get('sampling')!r}) cannot be "
        "prepared here as in training. Supported are resize and crop, or size with sampling 'tf1'."
    )


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF data say, and convert it to RGB with 8 bits. 16-bit grey is scaled by 1 / 257.

    Raises:
        EngineError: it is a narrow strip, or its pixels are floats or integers beyond 16 bits, so the value of white
            is unknown.
    """
    if max(image.size) > MOST_ELONGATED * min(image.size):
        raise EngineError(f"the image has {image.width} x {image.height} pixels, which is too narrow. Crop it.")
    image.load()  # a PNG may have its EXIF after the pixels
    turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    image = image if turn is None else image.transpose(turn)
    if image.mode == "F" or image.mode.startswith("I"):
        grey = np.asarray(image)
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise EngineError(
                f"the image has {grey.dtype} pixels from {grey.min()} to {grey.max()}. Save it with 8 bits."
            )
        image = Image.fromarray(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns if converted directly to RGB
    return image.convert("RGB")


def shape_of(preparation: dict[str, Any]) -> tuple[int, int, int]:
    """Shape of what `prepare` returns."""
    side = preparation["crop"] if "crop" in preparation else preparation["size"]
    return 3, side, side


def prepare(image: Image.Image, preparation: dict[str, Any]) -> np.ndarray:
    """Turn an RGB image into float32 (3, side, side), bit for bit as in training."""
    if "crop" in preparation:
        grey = _crop(image, preparation["resize"], preparation["crop"])
    else:
        grey = _square(image, preparation["size"])
        grey = np.rint(grey) if preparation["round_to_bytes"] else grey
    mean, std = (np.array(preparation[key], dtype=np.float32)[:, None, None] for key in ("mean", "std"))
    return (grey.astype(np.float32) / np.float32(255) - mean) / std


def _crop(image: Image.Image, resize: int, crop: int) -> np.ndarray:
    width, height = image.size
    short = min(width, height)
    image = image.resize((resize * width // short, resize * height // short), Image.Resampling.BILINEAR)
    left, top = (round((side - crop) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + crop, top + crop))).transpose(2, 0, 1)


def _square(image: Image.Image, size: int) -> np.ndarray:
    """Bilinear sampling at i * m / n without half pixels, as TensorFlow 1 did: first along x, then along y."""
    pixels = np.asarray(image).transpose(2, 0, 1)
    (upper, lower, down), (left, right, across) = (_neighbours(length, size) for length in pixels.shape[1:])

    def along_x(rows: np.ndarray) -> np.ndarray:
        chosen = pixels[:, rows]
        first = chosen[..., left].astype(np.float32)
        return first + (chosen[..., right].astype(np.float32) - first) * across

    top = along_x(upper)
    found: np.ndarray = top + (along_x(lower) - top) * down[:, None]
    return found


def _neighbours(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    place = np.arange(size, dtype=np.float32) * (np.float32(length) / np.float32(size))
    first = np.minimum(np.floor(place).astype(np.int64), length - 1)
    return first, np.minimum(first + 1, length - 1), place - first.astype(np.float32)


def _padded(key: str, tensor: np.ndarray, classes: int) -> np.ndarray:
    """A head with rows for `classes`, of which those that it does not have score minus infinity."""
    if key not in ("weight", "bias") or len(tensor) == classes:
        return tensor
    fill = 0.0 if key == "weight" else -np.inf
    more = np.full((classes - len(tensor), *tensor.shape[1:]), fill, dtype=np.float32)
    return np.concatenate((tensor, more))


def _bounded(path: Path, most: int) -> Path:
    if not path.is_file():
        raise EngineError(f"{path} is missing. Export the engine again.")
    if path.stat().st_size > most:
        raise EngineError(
            f"{path} has {path.stat().st_size} bytes, more than {most}. It is damaged or not part of an engine."
        )
    return path


def main(argv: list[str] | None = None) -> None:
    """Print the best classes of each image and adapter."""
    parser = argparse.ArgumentParser(description="Classify images with an exported engine.")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--adapters", nargs="+", help="names of adapters (default: all in the folder)")
    parser.add_argument("--engine", default=str(Path(__file__).parent), help="folder (default: that of this program)")
    parser.add_argument("--top", type=int, default=3, help="classes per line (default: 3)")
    args = parser.parse_args(argv)
    try:
        engine = Engine(args.engine)
        names = args.adapters or engine.available()
        for name in names:
            engine.load(name)
        for path in args.images:
            try:
                with Image.open(path) as image:
                    pixels = prepare(upright(image), engine.about["preparation"])
            except Exception as error:  # decoders raise two dozen kinds
                print(f"{path}: cannot be read ({error})", file=sys.stderr)
                continue
            for name, best in engine.answers(pixels, names, args.top).items():
                print(f"{path}\t{name}\t" + ", ".join(f"{label} {score:.3f}" for label, score in best))
    except EngineError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
