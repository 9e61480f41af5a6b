"""The one exception that means "the user can mend this"."""

LONGEST = 2_000  # characters of a message: a file's content may be quoted in it


class KdscaleError(Exception):
    """A mistake in what the user gave us, or a fault of their machine.

    The message is one line: what is wrong, where, and what to do. The command line prints it
    and exits with 1; it never shows a traceback for it. What a message quotes is made harmless
    here: a line break or a terminal's control sequence in it is shown as its escape, and the
    middle of a very long message is left out.
    """

    def __init__(self, message: str):
        super().__init__(_one_line(message))


def _one_line(text: str) -> str:
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
