"""Lists of hidden items that a web server has: asked for with ETag, within bounds of size and time."""

from __future__ import annotations

import time
from urllib.parse import unquote

import urllib3
from urllib3.util import Timeout, make_headers, parse_url

from recommender.catalogue.availability.lists import MOST_BYTES, KeyList, Mark, key_list
from recommender.errors import StartError
from recommender.settings.masking import masked

_CONNECT_SECONDS, _READ_SECONDS = 2.0, 5.0
_LONGEST_SECONDS = 10.0
"""An answer must be there as a whole after so long."""
_PIECE = 1 << 16
_OK, _NOT_MODIFIED = 200, 304


class UrlSource:
    """A list at an `http:` or `https:` URL; a name and a password in it are sent as basic authentication.

    Redirects are not followed, and no proxy is asked.
    """

    def __init__(self, url: str) -> None:
        parsed = parse_url(url)
        self.place = masked(parsed._replace(query=None, fragment=None).url)
        self._url = parsed._replace(auth=None).url
        self._headers = {"accept-encoding": "identity", "user-agent": "recommender"}
        if parsed.auth is not None:
            self._headers |= make_headers(basic_auth=unquote(parsed.auth))
        self._pool = urllib3.PoolManager(
            retries=False, timeout=Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS), maxsize=1
        )

    def read(self, known: Mark | None) -> tuple[KeyList, Mark] | None:
        """Ask for the list, unless it still has the entity tag `known`. Raises StartError if it cannot be had."""
        tag = {"if-none-match": known} if known and isinstance(known, str) else {}
        try:
            reply = self._pool.request(
                "GET", self._url, headers={**self._headers, **tag}, preload_content=False, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise StartError(f"{self.place} (hidden items) cannot be asked: {_reason(error)}") from error
        try:
            found = self._found(reply)
        except urllib3.exceptions.HTTPError as error:
            reply.close()
            raise StartError(f"{self.place} (hidden items) broke off: {_reason(error)}") from error
        except BaseException:
            reply.close()
            raise
        reply.release_conn()
        return found

    def _found(self, reply: urllib3.BaseHTTPResponse) -> tuple[KeyList, Mark] | None:
        if reply.status == _NOT_MODIFIED:
            return None
        if reply.status != _OK:
            to = " to another place: name that" if reply.get_redirect_location() else ""
            raise StartError(f"{self.place} (hidden items) answers with status {reply.status}{to}")
        if "html" in reply.headers.get("content-type", ""):
            raise StartError(f"{self.place} (hidden items) answers with a page: a list is text with a key on each line")
        ends = time.monotonic() + _LONGEST_SECONDS
        content = bytearray()
        while piece := reply.read1(_PIECE):
            content += piece
            if len(content) > MOST_BYTES:
                raise StartError(f"{self.place} has more than {MOST_BYTES >> 20} MiB, the most that a list may have")
            if time.monotonic() > ends:
                raise StartError(f"{self.place} (hidden items) takes longer than {_LONGEST_SECONDS:g} s to send them")
        return key_list(bytes(content), self.place), reply.headers.get("etag", "")


def _reason(error: Exception) -> str:
    return masked(str(error)) or type(error).__name__
