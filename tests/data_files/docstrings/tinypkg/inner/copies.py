def count_birds(pond):
    """COUNT the herons that stand in a POND.

    The summary equals another one but for its case, so the second of the two is left out of the
    pairs: it would ask for two passages.
    """


def warm_again(hours):
    """Say the same thing under another name.

    The bird sits on its eggs for so long, turns them now and then, and leaves them only for
    food, which its mate may bring instead.
    """


def ring(bird):
    r"""Put a ring on the leg of a bird.

    The ring has a number \d that nobody else has given out, so that a bird found in another
    country tells where it came from.
    """
