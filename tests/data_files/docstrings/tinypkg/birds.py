def count_herons(pond):
    """Count the herons that stand in a pond.

    Every heron is counted once, however long it stands there; a bronze heron that a gardener
    has put up to keep the others away is left out.
    """


class Nest:
    """A place where a bird lays its eggs.

    A nest knows its bird and the number of its eggs. It may be empty, and it may be used again
    in the year that follows, by the same bird or by another.
    """

    def hatch(self):
        """Too short.

        The summary has two words, so nobody could find this text by it, however long the text
        that follows may be, and it is left out.
        """

    def lay(self, egg):
        """Lay one more egg into this nest.

        Too few words in here.
        """

    async def warm(self, hours):
        """Keep the eggs warm for some hours.

        The bird sits on its eggs for so long, turns them now and then, and leaves them only for
        food, which its mate may bring instead.
        """


if Nest:

    def feed(young):
        """Feed the young birds of a nest.

        The hungriest is fed first, which is the one that calls loudest; the others must wait
        until the parent bird comes back with more.
        """

else:

    def feed(young):
        """Feed the young birds, but only once.

        The parent has one worm, gives it to the nearest of its young, and does not come back on
        that day, whatever calls may sound.
        """
