# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""VTAB's rules for labels that are derived from other annotations. Pure functions."""

import math
from collections.abc import Iterable, Sequence

from ..errors import DataError

_CLEVR_EDGES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
_KITTI_EDGES = (-100.0, 8.0, 20.0, 999.0)
_KITTI_NO_VEHICLE = 1000.0
KITTI_VEHICLES = frozenset({"Car", "Van", "Truck"})

# dSprites enumerates every combination of its factors once; y changes fastest.
DSPRITES_FACTORS = (("shape", 3), ("scale", 6), ("orientation", 40), ("x", 32), ("y", 32))


def _last_edge_below(edges: Sequence[float], value: float) -> int:
    """Return the largest i with edges[i] < value. A value on an edge belongs to the lower class."""
    below = [i for i, edge in enumerate(edges) if edge < value]
    if not below or math.isnan(value):
        raise DataError(f"The distance {value} is not above {edges[0]}, the lowest edge of this task's classes.")
    return below[-1]


def svhn(label: int) -> int:
    """Convert SVHN's stored label, which is 10 for the digit 0, to the digit."""
    return label % 10


def clevr_count(num_objects: int) -> int:
    """Convert the number of objects in a scene, 3 to 10, to class 0 to 7."""
    if not 3 <= num_objects <= 10:
        raise DataError(f"A CLEVR scene has 3 to 10 objects, not {num_objects}. (The test scenes have no labels.)")
    return num_objects - 3


def clevr_distance(depths: Iterable[float]) -> int:
    """Return class 0 to 5 of the nearest object, given the depths (third pixel coordinate) of all objects."""
    nearest = min(depths, default=math.nan)
    if math.isnan(nearest) or nearest > _CLEVR_EDGES[-1]:
        raise DataError(f"A CLEVR scene needs the depth of at least one object, up to 100. Got {nearest}.")
    return _last_edge_below(_CLEVR_EDGES, nearest)


def kitti_distance(vehicle_depths: Iterable[float]) -> int:
    """Return the distance class of the closest vehicle: 0 (up to 8 m), 1 (to 20 m), 2 (farther) or 3 (no vehicle).

    Args:
        vehicle_depths: z coordinate of every Car, Van and Truck, in metres.
    """
    return _last_edge_below(_KITTI_EDGES, min([*vehicle_depths, _KITTI_NO_VEHICLE]))


def kitti_distance_of_text(text: str) -> int:
    """Apply `kitti_distance` to a KITTI label file: one object per line, with type as first field and z as 14th.

    Raises:
        DataError: A line is not a KITTI object.
    """
    depths = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            kind, depth = fields[0], float(fields[13])
        except (IndexError, ValueError):
            raise DataError(f"Line {number} is not a KITTI object of 15 fields: {line!r}.") from None
        if kind in KITTI_VEHICLES:
            depths.append(depth)
    return kitti_distance(depths)


def dsprites_factors(index: int) -> dict[str, int]:
    """Convert row index 0 to 737279 to the class index of each factor of `DSPRITES_FACTORS`."""
    factors = {}
    rest = index
    for name, size in reversed(DSPRITES_FACTORS):
        rest, factors[name] = divmod(rest, size)
    if rest:
        raise DataError(f"dSprites has rows 0 to 737279, not {index}.")
    return factors


def dsprites_index(shape: int, scale: int, orientation: int, x: int, y: int) -> int:
    """Inverse of `dsprites_factors`."""
    index = 0
    for (name, size), value in zip(DSPRITES_FACTORS, (shape, scale, orientation, x, y), strict=True):
        if not 0 <= value < size:
            raise DataError(f"dSprites has {name} 0 to {size - 1}, not {value}.")
        index = index * size + value
    return index


def dsprites_location(x: int) -> int:
    """Convert x position 0 to 31 to class 0 to 15."""
    return _in_range("x position", x, 32) // 2


def dsprites_orientation(orientation: int) -> int:
    """Convert orientation 0 to 39 to class 0 to 15: floor(orientation / 2.5)."""
    return _in_range("orientation", orientation, 40) * 2 // 5


def smallnorb_azimuth(raw: int) -> int:
    """Convert the azimuth of the original files, 0, 2, ..., 34 (units of 10 degrees), to class 0 to 17."""
    if raw % 2:
        raise DataError(f"smallNORB stores even azimuths 0 to 34, not {raw}.")
    return _in_range("azimuth", raw, 36) // 2


def smallnorb_elevation(elevation: int) -> int:
    """Return the elevation, 0 to 8, which is the class."""
    return _in_range("elevation", elevation, 9)


def _in_range(name: str, value: int, size: int) -> int:
    if not 0 <= value < size:
        raise DataError(f"The {name} is {value}, expected 0 to {size - 1}.")
    return value
