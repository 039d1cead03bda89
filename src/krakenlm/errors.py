"""The one exception that a user's input raises."""


class InputError(Exception):
    """Input from outside is not what a stage needs.

    The message is one line: the key or file, what was expected, what was found, what to do. The command line
    prints it without a traceback and exits with status 2.
    """
