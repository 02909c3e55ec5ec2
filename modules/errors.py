"""The ways in which work ends early: a mistake of the user, a disk that is full, and an album that cannot go on."""


class UserError(ValueError):
    """A mistake that the user can mend.

    The message is one sentence that names the file, photo or key, what was found, what was expected and what to do.
    The command line prints it without a traceback and exits with code 2.
    """


class AlbumFailed(Exception):  # noqa: N818 - it says what became of the album
    """One album of a pack cannot go on (no usable photo, NaN, empty mesh); the others do.

    The message is the reason that is written to the album's manifest.
    """


class FolderInUse(UserError):  # noqa: N818 - it says what is the matter
    """Another process is at work in the folder."""


class OutputError(UserError):
    """Results cannot be written: the disk is full, or the folder may not be written. No album is to blame."""
