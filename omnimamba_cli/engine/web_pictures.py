"""Pictures from web addresses, where the user allowed that: http and https alone, limited in size and time."""

import http.client
import time
import urllib.error
import urllib.request

from omnimamba_cli import __version__
from omnimamba_cli.engine.remote import offline
from omnimamba_cli.errors import InputError

MOST_BYTES = 64_000_000
TIMEOUT_S = 30.0  # for all of it
CHUNK = 1 << 16


def fetch(url: str, *, most_bytes: int = MOST_BYTES, timeout_s: float = TIMEOUT_S) -> bytes:
    """The bytes behind an address, redirections followed. Raises InputError, by the address, for all that can fail."""
    if offline():
        raise InputError(f"{url}: is not fetched while offline", hint="leave --offline out, or unset HF_HUB_OFFLINE")
    deadline = time.monotonic() + timeout_s
    try:
        request = urllib.request.Request(url, headers={"User-Agent": f"omnimamba/{__version__}"})
        with _opener().open(request, timeout=timeout_s) as answer:
            return _body(answer, url, most_bytes, deadline, timeout_s)
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        raise InputError(f"{url}: the server answered {error.code} {error.reason}".rstrip()) from None
    except TimeoutError:
        raise _late(url, timeout_s) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, TimeoutError):
            raise _late(url, timeout_s) from None
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        raise InputError(f"{url}: cannot be fetched ({reason.lower()})") from None


def _body(answer: http.client.HTTPResponse, url: str, most_bytes: int, deadline: float, timeout_s: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    # read1 returns what has come, so that a slow server cannot keep us from looking at the clock
    while part := answer.read1(CHUNK):
        size += len(part)
        if size > most_bytes:
            raise InputError(f"{url}: is larger than the {most_bytes / 1e6:,.0f} MB that are fetched")
        if time.monotonic() > deadline:
            raise _late(url, timeout_s)
        parts.append(part)
    if answer.length:
        raise InputError(f"{url}: the connection ended {answer.length:,} bytes early")
    return b"".join(parts)


def _late(url: str, timeout_s: float) -> InputError:
    return InputError(f"{url}: did not come within {timeout_s:g} s")


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https, with proxies and redirections. Unlike urllib's own, never file:, ftp: or data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener
