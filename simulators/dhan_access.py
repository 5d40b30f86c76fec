"""Who may connect to the simulated Dhan, and for how long: tokens, the limit of sockets, refusals.

Stands between the plain stream simulator and Dhan's requests and packets.
Source: DhanHQ v2 authentication and annexure (reason codes); public reports of bare drops and of HTTP 429.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from services.wire.dhan import Disconnect, encode
from simulators import dhan_depth
from simulators.connection import BINARY, Connection
from simulators.stream import StreamSimulator
from simulators.tokens import TokenBook

MAX_CONNECTIONS = 5
LIVE = "live"
LIVE_V1 = "live_v1"


class DhanAccess(StreamSimulator):
    """The account's side of the simulator.

    `tokens` holds what is accepted. `rejection` says how a bad token is answered: a code 50 packet (`808`,
    `809`, `810`), a bare reset after the handshake (`abort`), or an HTTP status (`http_429`, `http_401`).
    `renewal` says what goes wrong with a renewal: `http_500`, `no_json`, or `no_answer`, where the token is
    renewed and the answer gets lost, or `slow`, where it is renewed and the answer takes two seconds; nothing
    where it is empty.
    The limit of connections holds per type of feed; one more ends the oldest.
    """

    def __init__(
        self,
        *,
        tokens: TokenBook | None = None,
        rejection: str = "809",
        max_connections: int = MAX_CONNECTIONS,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.tokens = tokens or TokenBook()
        self.rejection = rejection
        self.data_plan_active = True
        self.renewal = ""
        self.max_connections = max_connections
        self.feed_of: dict[int, str] = {}
        self.token_of: dict[int, str] = {}

    @property
    def client_id(self) -> str:
        """The account's client id."""
        return self.tokens.client_id

    @property
    def access_token(self) -> str:
        """The newest good access token."""
        return self.tokens.current

    async def open_feed(self, request: web.Request, feed: str) -> web.StreamResponse:
        """Answer the handshake on one of the feeds; version 1 of the live feed logs in later."""
        query = request.query
        token, client_id = query.get("token", ""), query.get("clientId", "")
        refusal = None
        if feed != LIVE_V1:
            refusal = self._refusal(token, client_id)
            if query.get("authType") != "2" or query.get("version", "2") != "2":
                refusal = refusal or 808
        if refusal == 809 and self.rejection.startswith("http_"):
            self.note("handshake", request.path_qs)
            self.handshakes += 1
            return web.Response(status=int(self.rejection.removeprefix("http_")))

        def opened(connection: Connection) -> None:
            self.feed_of[connection.number] = feed
            if refusal is not None:
                self._refuse_client(connection, refusal)
            elif feed != LIVE_V1:
                self._admit(connection, token)

        return await self.serve(request, opened)

    def _refusal(self, token: str, client_id: str) -> int | None:
        refusal = self.tokens.refusal(token, client_id)
        if refusal is None and not self.data_plan_active:
            return 806
        return refusal

    def _refuse_client(self, connection: Connection, reason: int) -> None:
        if reason == 809 and self.rejection in ("808", "810"):
            reason = int(self.rejection)
        if reason == 809 and self.rejection == "abort":
            connection.close_reason = "bad token"
            connection.abort()
        else:
            self.disconnect(connection, reason)

    def log_in(self, connection: Connection, token: str, client_id: str) -> None:
        """Admit a version 1 connection that has sent its login, or refuse it."""
        refusal = self._refusal(token, client_id)
        if refusal is None:
            self._admit(connection, token)
        else:
            self._refuse_client(connection, refusal)

    def _admit(self, connection: Connection, token: str) -> None:
        self.token_of[connection.number] = token
        family = dhan_depth.family(self.feed_of[connection.number])
        admitted = [
            it
            for number, it in self.connections.items()
            if not it.closing
            and number in self.token_of
            and dhan_depth.family(self.feed_of[number]) == family
        ]
        if len(admitted) > self.max_connections:
            # Source: the oldest of six sockets is the one that is told 805 and closed.
            self.disconnect(admitted[0], 805)

    def disconnect(self, connection: Connection, reason: int) -> None:
        """Send a disconnect packet with this reason and close the connection."""
        feed = self.feed_of.get(connection.number, LIVE)
        if feed in (dhan_depth.DEPTH_20, dhan_depth.DEPTH_200):
            packet = dhan_depth.disconnect_packet(reason)
        else:
            packet = encode(Disconnect(segment=0, security_id=0, reason=reason))
        connection.send_now(BINARY, packet)
        connection.close_reason = f"disconnect {reason}"
        connection.close(1000)

    def forget(self, connection: Connection) -> None:
        """Drop everything that is known of a connection that has ended."""
        super().forget(connection)
        self.feed_of.pop(connection.number, None)
        self.token_of.pop(connection.number, None)

    def expire_token(self, token: str | None = None) -> str:
        """Let an access token (default: the current one) expire; its connections get 807 and are closed."""
        expired = self.tokens.expire(token)
        for number, connection in list(self.connections.items()):
            if self.token_of.get(number) == expired:
                self.fault_counts["expire_token"] += 1
                self.disconnect(connection, 807)
        return expired
