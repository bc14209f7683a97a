"""What a failed request to the Hub means: whether to try again, and an error message with the next step.

Exceptions are known by name and status code, since huggingface_hub changes its network library between releases.
"""

import errno
import time
from email.utils import parsedate_to_datetime

from omnimamba_cli.errors import DownloadError, InputError, OmniMambaError

OFFLINE_HINT = "run once without --offline and HF_HUB_OFFLINE, or give local files: omnimamba download --from DIR"
PROXY_LOGIN = ("the proxy asks for a login (407)", "put it into HTTPS_PROXY: http://USER:PASSWORD@HOST:PORT")
PASSING = {408, 425, 429, 500, 502, 503, 504}  # status codes after which another try may succeed
SILENT = {"Timeout", "TimeoutException", "TimeoutError", "RemoteProtocolError"}
BROKEN = {"ReadError", "WriteError", "ChunkedEncodingError", "ProtocolError", "IncompleteRead", "RangeIgnoredError"}
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


def _kinds(error: BaseException) -> set[str]:
    """The class names of an error and of what caused it."""
    names: set[str] = set()
    seen: BaseException | None = error
    while seen is not None:
        names |= {kind.__name__ for kind in type(seen).__mro__}
        seen = seen.__cause__
    return names


def _status(error: BaseException | None) -> int:
    """The status code of the answer, 0 where there was none."""
    while error is not None:
        code = getattr(getattr(error, "response", None), "status_code", 0)
        if code:
            return int(code)
        error = error.__cause__
    return 0


def _asked_wait_s(error: BaseException) -> float:
    """Seconds that the server asks to wait in Retry-After, given as seconds or as a date; 0 without one."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    value = str(headers.get("Retry-After", "")).strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def wait_s(error: Exception, by_library: bool = False) -> float | None:
    """Least seconds to wait before another try, or None where another try would not help.

    `by_library`: huggingface_hub has already retried silent connections itself.
    """
    kinds, status = _kinds(error), _status(error)
    if "ProxyError" in kinds or "ConnectTimeout" in kinds:
        return None
    if status:
        return _asked_wait_s(error) if status in PASSING else None
    if kinds & BROKEN or (kinds & SILENT and not by_library):
        return 0.0
    return None


def explained(error: Exception, where: str) -> OmniMambaError:
    """The error that a user sees: what failed, why, what to do."""
    if isinstance(error, OmniMambaError):
        return error
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return InputError(f"{where}: the disk is full", hint="make room and run the same command again: it continues")
    if isinstance(error, OSError) and error.errno in NOT_ALLOWED and error.filename is not None:
        return InputError(
            f"{error.filename} cannot be written: {error.strerror}", hint="choose another place: --dir DIR"
        )
    why, hint = _answer(_status(error), _kinds(error), _asked_wait_s(error)) or _line(error)
    return DownloadError(f"{where} could not be downloaded: {why}", hint=hint)


def _answer(status: int, kinds: set[str], asked_s: float) -> tuple[str, str] | None:
    """(why, hint) where the server answered with a refusal; None for other failures."""
    if "GatedRepoError" in kinds:
        return "the repository is gated", "accept its terms on its page, then: hf auth login"
    if "RevisionNotFoundError" in kinds:
        return "the repository has no such revision", "leave @REVISION out, or look it up on the repository's page"
    if "RepositoryNotFoundError" in kinds:
        return "the Hub has no such repository, or it asks for a login", "check the name, or log in: hf auth login"
    if "RemoteEntryNotFoundError" in kinds or ("EntryNotFoundError" in kinds and status == 404):
        return "the repository has no such file", "pip install --upgrade omnimamba-cli, or give local files: --from DIR"
    if status == 401:
        return "the Hub asks for a login (401)", "hf auth login, or set HF_TOKEN"
    if status == 403:
        return "access is refused (403)", "the token may lack the right to read it; look at it with: hf auth whoami"
    if status == 407:
        return PROXY_LOGIN
    if status == 429:
        when = f"{asked_s:.0f} seconds" if asked_s else "some minutes"
        return "the Hub says too many requests (429)", f"wait {when}, or log in for a higher limit: hf auth login"
    if status >= 500:
        return f"the Hub has trouble ({status})", "run the same command again later: it continues"
    if status:
        return f"the Hub answers {status}", "check the name and HF_ENDPOINT"
    return None


def _line(error: Exception) -> tuple[str, str]:
    """(why, hint) where no answer came."""
    kinds, text = _kinds(error), str(error)
    if "ProxyError" in kinds and "407" in text:  # of an https address: the proxy refuses before there is an answer
        return PROXY_LOGIN
    if "ProxyError" in kinds:
        return f"the proxy refuses ({_first(text)})", "check HTTPS_PROXY and HTTP_PROXY, or leave them out"
    if "CERTIFICATE_VERIFY" in text or "CERTIFICATE_VERIFY" in str(error.__cause__):
        return "its certificate is not trusted", "behind a company's proxy: set SSL_CERT_FILE to its certificate"
    if "OfflineModeIsEnabled" in kinds or ("LocalEntryNotFoundError" in kinds and error.__cause__ is None):
        return "it is not in the cache, and the network is not to be used", OFFLINE_HINT
    if kinds & {"UnsupportedProtocol", "MissingSchema", "InvalidSchema", "InvalidURL"}:
        return (
            f"HF_ENDPOINT is no address ({_first(text)})",
            "it begins with https:// or http://, or is not set",
        )
    if "JSONDecodeError" in kinds:
        return "the answer is none of a Hugging Face Hub", "check HF_ENDPOINT and the proxy settings"
    if "Consistency check" in text:  # of huggingface_hub: the file was shorter or longer than promised
        return "it came with another length than promised", "run the same command again: it continues"
    if kinds & {"TimeoutException", "Timeout", "TimeoutError"}:
        return "no answer came in time", "run the same command again: it continues"
    if kinds & (BROKEN | {"RemoteProtocolError"}):
        return "the connection broke off", "run the same command again: it continues"
    if kinds & {"ConnectError", "ConnectionError", "NetworkError"}:
        return "the Hub cannot be reached", "check the network and the proxy settings, or give local files: --from DIR"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror or _first(text)}".lower(), "check the folder, then run the same command again"
    return _first(text) or type(error).__name__, "check the network, or give a model directory instead"


def _first(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].rstrip(".") if lines else ""
