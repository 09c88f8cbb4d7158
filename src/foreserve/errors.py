"""The exception tree. Everything Foreserve raises on purpose is one of these.

```
ForeserveError
├── ConfigError            an app, a setting, a model file or an argument is wrong (before anything starts)
├── EngineStartError       an engine could not be made ready on this machine
├── LedgerError            a request ended twice or was never entered: a defect of ours
└── RequestError           one request cannot be served; carries what a client is told
    ├── BadRequest         400  the request itself is wrong, `param` names where
    │   └── ContextExceeded 400 the prompt is longer than the model's context
    ├── Unauthorized       401
    ├── Forbidden          403  this server's settings do not allow it
    ├── NotFound           404  no such model, function or path
    ├── BodyTimeout        408  the body did not arrive in time
    ├── TooLarge           413
    ├── Shed               429  refused at once, `retry_after` says when to come again
    ├── ClientGone         499  the client left (logged, never sent)
    ├── EngineFailed       500  the engine ended this request with an error
    ├── Unavailable        503  no replica can serve now
    ├── ReplicaLost        503  the replica died and the request may not run again
    ├── Expired            504  the deadline passed
    └── UpstreamRefused    as the upstream server said it
```

Every `RequestError` has `status` (HTTP), `code` (a word for programs) and `message` (words for people).
"""

from __future__ import annotations

from typing import Any, ClassVar


class ForeserveError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(ForeserveError):
    """An app or a setting is wrong; the message names the place and the valid choices."""


class EngineStartError(ForeserveError):
    """An engine cannot become ready: a missing package, a bad model file, too little memory."""


class LedgerError(ForeserveError):
    """The conservation rule was broken. Never expected; tests look for it."""


class RequestError(ForeserveError):
    """One request cannot be served. Subclasses fix `status` and `code`."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class BadRequest(RequestError):
    """The request itself is wrong; `param` names where."""

    status = 400
    code = "invalid_request"


class ContextExceeded(BadRequest):
    """The prompt, or prompt and answer, are longer than the model's context."""

    code = "context_length_exceeded"


class Unauthorized(RequestError):
    """No API key, or one that is not known."""

    status = 401
    code = "invalid_api_key"


class Forbidden(RequestError):
    """Understood, and not allowed here; the message names the setting that would allow it."""

    status = 403
    code = "forbidden"


class NotFound(RequestError):
    """No such model, function or path; the message names those there are."""

    status = 404
    code = "not_found"


class BodyTimeout(RequestError):
    """The request's body did not arrive in time."""

    status = 408
    code = "request_timeout"


class TooLarge(RequestError):
    """The body is larger than the server takes."""

    status = 413
    code = "request_too_large"


class Shed(RequestError):
    """Refused at once because serving it in time is not expected.

    `retry_after` is in seconds and always set, so that a client knows when to come again.
    """

    status = 429
    code = "shed"


class ClientGone(RequestError):
    """The client left before its answer was complete. Logged, never sent."""

    status = 499
    code = "client_gone"


class EngineFailed(RequestError):
    """The engine ended this request with an error."""

    status = 500
    code = "engine_error"


class Unavailable(RequestError):
    """No replica can serve now."""

    status = 503
    code = "unavailable"


class ReplicaLost(RequestError):
    """The replica died and the request may not run again, has done so already, or cannot go on where it was."""

    status = 503
    code = "replica_lost"


class Expired(RequestError):
    """The request's deadline passed."""

    status = 504
    code = "deadline_exceeded"


class UpstreamRefused(RequestError):
    """The upstream server answered with an error of its own, which is passed on unchanged.

    `upstream_status` is its HTTP status, `body` its body (bytes), `content_type` its media type.
    """

    code = "upstream_refused"

    def __init__(self, message: str, *, detail: dict[str, Any]) -> None:
        super().__init__(message, retry_after=detail.get("retry_after"))
        self.upstream_status: int = detail["status"]
        self.body: bytes = detail["body"]
        self.content_type: str = detail.get("content_type", "application/json")


BY_CODE: dict[str, type[RequestError]] = {
    cls.code: cls
    for cls in (
        BadRequest, ContextExceeded, Unauthorized, NotFound, BodyTimeout, TooLarge, Shed, ClientGone,
        EngineFailed, Unavailable, ReplicaLost, Expired,
    )
}  # fmt: skip
"""Request errors by `code`: how an `Outcome` that crossed a process becomes an exception again."""
