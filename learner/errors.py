"""Errors of the learning side that others act upon. Apart from what raises them, so that a reader need not load torch."""


class GroupError(Exception):
    """Another learner of the group died, or does not answer any more; the message says which exchange failed."""
