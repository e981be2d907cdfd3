"""Adapter files that are damaged, foreign or hostile, each made by a few lines, with the error that must meet it.

    damage.py    what happens to files: cut, mixed, edited by hand, of another base or method
    headers.py   safetensors headers that lie
    sizes.py     files that are huge, or claim to be
    configs.py   settings that nobody would write by accident

An attack changes the folder of a good adapter for `models.vit()`. Every one of them must be refused with its error and
words, before the base is touched, within seconds and without taking memory: `test_attacks.py` runs them all.
"""

from . import configs, damage, headers, sizes
from .attack import Attack

ATTACKS: dict[str, Attack] = {
    f"{module.__name__.rpartition('.')[2]}-{name}": attack
    for module in (damage, headers, sizes, configs)
    for name, attack in module.ATTACKS.items()
}
