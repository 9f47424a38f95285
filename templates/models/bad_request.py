"""The one error that is the client's fault: any other exception of a model is the server's.

The launcher renders the files of templates/models beside an engine's own handler, which imports them.
"""

from __future__ import annotations


class BadRequestError(ValueError):
    """The request cannot be served; the message goes to the client."""
