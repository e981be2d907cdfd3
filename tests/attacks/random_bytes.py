"""Random damage to bytes."""

import random

SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8, "num_labels": 3}


def damage(data: bytes, random_: random.Random) -> bytes:
    """Change, drop or insert one to three bytes; half of them in the first part, which is the header of weights."""
    changed = bytearray(data)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        place = random_.randrange(len(changed) // random_.choice((1, 2)))
        kind = random_.choice(("any", "any", "digit", "bit", "drop", "insert"))
        if kind == "drop":
            del changed[place]
        elif kind == "insert":
            changed.insert(place, random_.choice(b'0123456789"{}[],:-eE. '))
        else:
            new = {"any": random_.randrange(256), "digit": random_.choice(b"0123456789-.e"), "bit": changed[place]}
            changed[place] = new[kind] ^ (1 << random_.randrange(8) if kind == "bit" else 0)
    return bytes(changed)
