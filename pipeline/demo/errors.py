"""The API server's refusals, as the Status objects that a client sees.

Codes, reasons and messages: apimachinery `api/errors/errors.go`, apiserver `storage/errors.go`, and what kube-apiserver
v1.36 answers.
"""

from __future__ import annotations

from pipeline.demo.kinds import JsonObject, Resource

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class ApiError(Exception):
    """A refusal: `code` is the HTTP status, `continue_token` (with 410) where an inconsistent list could go on."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        reason: str = "",
        retry_after_s: int | None = None,
        continue_token: str = "",
        details: JsonObject | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason or _REASONS.get(code, "InternalError")
        self.retry_after_s = retry_after_s
        self.continue_token = continue_token
        self.details = details or {}

    def status(self) -> JsonObject:
        """The Status object."""
        body: JsonObject = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {"continue": self.continue_token} if self.continue_token else {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        retry = {} if self.retry_after_s is None else {"retryAfterSeconds": self.retry_after_s}
        details = self.details | retry
        return body | {"details": details} if details else body


def _qualified(resource: Resource) -> str:
    return f"{resource.plural}.{resource.group}" if resource.group else resource.plural


def not_found(resource: Resource, name: str) -> ApiError:
    """The object is not there."""
    return ApiError(404, f'{_qualified(resource)} "{name}" not found', details={"name": name, "kind": resource.plural})


def already_exists(resource: Resource, name: str) -> ApiError:
    """An object of this name is there."""
    return ApiError(409, f'{_qualified(resource)} "{name}" already exists', reason="AlreadyExists")


def too_old() -> ApiError:
    """The history no longer reaches back to the version."""
    return ApiError(410, "The resourceVersion for the provided watch is too old.")


def token_expired(inconsistent_token: str) -> ApiError:
    """The list's snapshot is gone; its rest can be had at another version only."""
    return ApiError(
        410,
        "The provided continue parameter is too old to display a consistent list result. You can start a new list "
        "without the continue parameter, or use the continue token in this response to retrieve the remainder of the "
        "results. Continuing with the provided token results in an inconsistent list - objects that were created, "
        "modified, or deleted between the time the first chunk was returned and now may show up in the list.",
        continue_token=inconsistent_token,
    )


def too_new(version: int, current: int) -> ApiError:
    """The client asks for a version that the store has not come to."""
    message = f"Timeout: Too large resource version: {version}, current: {current}"
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return ApiError(504, message, retry_after_s=1, details={"causes": [cause]})
