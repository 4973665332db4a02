"""Error messages on one line. Imports nothing heavy."""

from collections.abc import Callable

MAX_QUOTED = 160  # letters of another library's message


def one_line(message: object) -> str:
    """Return a message for the terminal, with line breaks and control characters, as in paths, as their escapes."""
    letters = (
        letter if letter == " " or letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in str(message)
    )
    return "".join(letters)


def shorten_error(error: BaseException, clean: Callable[[str], str] = str) -> str:
    """Return a library's error on one line, to be quoted in a message. Of a long one, return the first sentence.

    Args:
        clean: changes the whole message before it is cut.
    """
    message = " ".join(clean(str(error)).split()) or type(error).__name__
    return message if len(message) <= MAX_QUOTED else message.partition(". ")[0][:MAX_QUOTED]


def unreadable(error: OSError) -> str:
    """Return the message for a file or folder that cannot be read."""
    return f"{error.filename}: cannot be read ({error.strerror})" if error.filename else str(error)
