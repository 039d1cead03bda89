"""What can go wrong for reasons that lie outside of the program."""


class InputError(Exception):
    """Input from outside is not what a stage needs.

    The message is one line: the key or file, what was expected, what was found, what to do. The command line
    prints it without a traceback and exits with status 2.
    """


class RankError(RuntimeError):
    """A rank ended before its work was done; the message has the end of what it wrote, its traceback.

    The command line prints the message and exits with status 1.
    """
