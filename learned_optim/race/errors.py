"""What a race refuses."""


class RaceError(ValueError):
    """A race cannot be run as it was asked for; the message is one line."""
