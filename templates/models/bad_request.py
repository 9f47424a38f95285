"""The one error that is the client's: everything else that a model raises is the server's.

The launcher renders the files of templates/models beside an engine's own handler, which imports them.
"""

from __future__ import annotations


class BadRequestError(ValueError):
    """The request cannot be served as it stands; the message goes to the client."""
