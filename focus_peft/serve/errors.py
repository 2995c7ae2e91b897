"""Errors in the form that OpenAI's clients know."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse


class ApiError(HTTPException):
    """Ends a request. What parses bodies lets it pass, as an `HTTPException`.

    Args:
        status (`int`): Of HTTP.
        message (`str`): A sentence with a remedy.
        param (`str`, *optional*): The field of the request that it is about.
        code (`str`, *optional*): A word for programs.
        retry_after (`int`, *optional*): Seconds after which it may work.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(status, message, None if retry_after is None else {"Retry-After": str(retry_after)})
        self.param, self.code = param, code

    def __str__(self) -> str:
        return self.detail

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status_code >= 500 else "invalid_request_error"
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status_code, self.headers)
