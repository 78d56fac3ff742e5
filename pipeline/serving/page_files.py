"""Files of the page at `/`."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.staticfiles import StaticFiles

ASK_AGAIN = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
"""Headers with which a browser asks whether a file is still the newest, so that a page never mixes two releases."""


class PageFiles(StaticFiles):
    """Scripts, style and icon of the page."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file, or 304 if the browser has it."""
        response: Response = super().file_response(*args, **kwargs)
        response.headers.update(ASK_AGAIN)
        return response
