"""The one exception a user is meant to read."""


class StudyError(ValueError):
    """Something the user gave is wrong; the message is one sentence that names it and says what would be right."""
