"""Which requests for a blob are answered with a redirect to the bucket, instead of the bytes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mirror.errors import RangeInvalid, TooManyRanges
from mirror.oci.span import parse_ranges
from mirror.policy.clients.networks import Networks


class NoRedirect(Enum):
    """Why a request is answered with the bytes."""

    NETWORK = "the client is in none of the networks that are redirected"
    RANGES = "the client asks for several parts, or for one on a condition"
    AGAIN = "the client was redirected for this blob just before, and asks again: perhaps it cannot reach the bucket"
    SMALL = "the blob is smaller than redirect_from"


@dataclass(frozen=True, slots=True)
class RedirectRule:
    """Clients in `networks` are redirected for blobs of `least` bytes or more. The URL is valid for `life` seconds."""

    networks: Networks
    least: int
    life: float

    def of_request(
        self, client: str | None, ranges: str | None, *, conditional: bool = False, again: bool = False
    ) -> NoRedirect | None:
        """Why a GET is not redirected, whatever the blob is; None if it may be.

        `client` is the client's address, None if it is not known. `ranges` is the `Range` header. `conditional`: the
        request has an `If-Range`, whose entity tag the bucket would compare with its own. `again`: this client was
        redirected for this blob a short time ago.
        """
        if client is None or client not in self.networks:
            return NoRedirect.NETWORK
        if conditional or (ranges is not None and "," in ranges):
            return NoRedirect.RANGES
        return NoRedirect.AGAIN if again else None

    def of_blob(self, size: int) -> NoRedirect | None:
        """Why a GET of a blob of `size` bytes is not redirected; None if it may be."""
        return NoRedirect.SMALL if size < self.least else None


def asked_bytes(ranges: str | None, size: int) -> int | None:
    """How many bytes of a blob of `size` bytes a request asks for; None if the answer is an error."""
    try:
        spans = parse_ranges(ranges, size)
    except (RangeInvalid, TooManyRanges):
        return None
    return sum(span.length for span in spans) if spans else size
