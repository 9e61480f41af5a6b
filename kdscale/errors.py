"""The one exception that means "the user can mend this"."""


class KdscaleError(Exception):
    """A mistake in what the user gave us, or a fault of their machine.

    The message is one line: what is wrong, where, and what to do. The command line prints it
    and exits with 1; it never shows a traceback for it.
    """
