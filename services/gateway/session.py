"""One WebSocket client: what it watches, what it is answered, and when bytes go to its socket.

Stands between the broadcast, which fills the outbox, and the client's transport. Everything here is a
plain call on the event loop; nothing waits for the client, so a client cannot hold up anything.

Close codes tell the client what to do: 4000-4499 connect again, 4500-4999 do not.

| code | because |
|---|---|
| 1012 | the daemon stops; connect again |
| 4008 | nothing was read for too long (the connection is cut; the code stands in the log) |
| 4401 | no token came within the time allowed |
| 4402 | what the token allows has changed; connect again to use it |
| 4413 | too many messages |
| 4429 | all places of the token are taken; connect again later |
| 4500 | the token is wrong, was revoked, or is not for live data |
| 4501 | too many messages that we cannot accept |
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from services.data_broadcast import Publication
from services.gateway.authentication import Authenticator, Principal
from services.gateway.encoding import close_frame, ping_frame, pong_frame, text_frame, to_json
from services.gateway.flow import FlowLimits, FlowWindow
from services.gateway.grants import EVERYTHING, TICKS
from services.gateway.limits import ClientLimits, ErrorBudget, TokenBucket
from services.gateway.outbox import Outbox, SharedFrames
from services.gateway.protocol import (
    Authenticate,
    ClientMessage,
    ClientMessageError,
    MessageId,
    Ping,
    Subscribe,
    Unsubscribe,
    parse_client_message,
)
from services.gateway.subscriptions import SubscriptionContext, Subscriptions
from services.market_data.clock import Clock
from services.market_data.records import ControlRecord

CLOSE_RESTARTING = 1012
CLOSE_NOT_READING = 4008
CLOSE_AUTHENTICATION_LATE = 4401
CLOSE_RIGHTS_CHANGED = 4402
CLOSE_TOO_MANY_MESSAGES = 4413
CLOSE_NO_PLACE = 4429
CLOSE_TOKEN_WRONG = 4500
CLOSE_TOO_MANY_ERRORS = 4501

_numbers = itertools.count(1)
_RESET = struct.pack("ii", 1, 0)
RELIEF_PACE_S = 1.0
RELIEF_SHARE = 8
"""While memory is short a client gets its newest values this often, and an eighth of its outbox."""
WRITE_AHEAD_BYTES = 64 * 1024
"""No more is handed to a transport while this much already waits in it."""


class SessionCounters(msgspec.Struct):
    """What one session has sent and heard; `skipped` messages were lost to its own slowness."""

    messages_in: int = 0
    errors: int = 0
    frames_out: int = 0
    bytes_out: int = 0


class SessionContext(msgspec.Struct, frozen=True):
    """What all sessions of a gateway share.

    `ready` asks for a flush of the session's queue soon; `taking` returns what queues a tick in an outbox.
    """

    subscriptions: SubscriptionContext
    clock: Clock
    authenticator: Authenticator
    limits: ClientLimits
    flow: FlowLimits
    frames: SharedFrames
    ready: Callable[[ClientSession], None]
    paced: Callable[[ClientSession], None]
    taking: Callable[[Outbox], Callable[[Publication], None]]


class ClientSession:
    """One connected client. An `Outlet` of the broadcast.

    `descriptor` is that of a socket to which the transport writes all that it is given: what the socket takes
    at once is written past the transport. -1 where there is none.
    """

    __slots__ = (
        *("_bucket", "_clock", "_close_sent_s", "_context", "_deferred", "_descriptor", "_errors", "_flow"),
        *("_has_place", "_least_pace_s", "_subscriptions", "_transport", "_wake", "address", "awaits_flush"),
        *("close_code", "close_reason", "counters", "id", "opened_s", "origin", "outbox", "principal"),
        *("protocol", "take"),
    )

    def __init__(
        self,
        context: SessionContext,
        transport: asyncio.Transport,
        *,
        address: str,
        principal: Principal | None,
        origin: str = "",
        protocol: str = "websocket",
        has_place: Callable[[Principal], bool] = lambda _principal: True,
        descriptor: int = -1,
    ) -> None:
        self._context = context
        self._clock = context.clock
        self._transport = transport
        self._descriptor = descriptor
        self.id = f"c{next(_numbers)}"
        self.address = address
        self.origin = origin
        self.protocol = protocol
        self.principal = principal
        self._has_place = has_place
        self.counters = SessionCounters()
        self.opened_s = now_s = self._clock.monotonic_s()
        self.awaits_flush = False
        """Whether the pacer has this session on its list; the pacer's own mark."""
        self._wake: Callable[[], None] = partial(context.ready, self)
        self.outbox = Outbox(context.limits.outbox_bytes, self._wake, context.frames)
        self.take: Callable[[Publication], None] = context.taking(self.outbox)
        """Queue one tick for an instrument with delivery `all`."""
        self._flow = FlowWindow(now_s, context.flow)
        self._bucket = TokenBucket(context.limits.messages_per_s, context.limits.message_burst, now_s)
        self._errors = ErrorBudget(context.limits.errors_per_minute)
        self._subscriptions = Subscriptions(
            context.subscriptions,
            self,
            self.outbox,
            paced=lambda: context.paced(self),
            recovered=self._obey_deferred,
        )
        self._deferred: deque[ClientMessage] = deque()
        self._least_pace_s = 0.0
        self._close_sent_s: float | None = None
        self.close_code = 0
        self.close_reason = ""

    # ---- outlet ---------------------------------------------------------------------------------

    def take_control(self, publication: Publication) -> None:
        """Queue one control record; bars belong to the chart channel and are not control messages."""
        record = publication.record
        if isinstance(record, ControlRecord) and record.type != "bar":
            self.outbox.take_control(publication)

    # ---- hearing --------------------------------------------------------------------------------

    def hear(self, data: bytes) -> None:
        """Take one text message from the client and queue the answer."""
        now_s = self._clock.monotonic_s()
        self.counters.messages_in += 1
        if not self._bucket.take(now_s):
            limits = self._context.limits
            self._answer_error(
                "rate_limited",
                f"at most {limits.messages_per_s:g} messages a second, {limits.message_burst} at once",
            )
            self.close(CLOSE_TOO_MANY_MESSAGES, "too many messages")
            return
        try:
            message = parse_client_message(data)
        except ClientMessageError as refusal:
            self.refuse(refusal)
            return
        if self._subscriptions.recovering:
            # Messages are answered in order, and what was missed stands before any later answer.
            self._deferred.append(message)
        else:
            self._try_to_obey(message)

    def subscribe(self, wish: Subscribe) -> None:
        """Watch what is wished, without a message. Raises `ClientMessageError` beyond the client's limits."""
        self._subscriptions.subscribe(wish, self.principal.grant if self.principal else EVERYTHING)

    def refuse(self, refusal: ClientMessageError) -> None:
        """Tell the client what is wrong with its message; end the session when that happens too often."""
        self.counters.errors += 1
        self._answer_error(refusal.code, str(refusal), refusal.message_id)
        if not self._errors.spend(self._clock.monotonic_s()):
            self.close(CLOSE_TOO_MANY_ERRORS, "too many messages that cannot be accepted")

    def heard_ping(self, payload: bytes) -> None:
        """Answer a ping of the client's; they count as messages."""
        if not self._bucket.take(self._clock.monotonic_s()):
            self.close(CLOSE_TOO_MANY_MESSAGES, "too many pings")
            return
        self.outbox.put(pong_frame(payload))

    def heard_pong(self, payload: bytes) -> None:
        """Learn how far the client has read, and send on if that makes room."""
        now_s = self._clock.monotonic_s()
        if self._flow.ponged(payload, now_s):
            if self.outbox.waiting:
                self._wake()
        elif not self._bucket.take(now_s):
            self.close(CLOSE_TOO_MANY_MESSAGES, "too many pongs")

    def _obey_deferred(self) -> None:
        while self._deferred and not (self._subscriptions.recovering or self.closing):
            self._try_to_obey(self._deferred.popleft())

    def _try_to_obey(self, message: ClientMessage) -> None:
        try:
            self._obey(message)
        except ClientMessageError as refusal:
            # A good message beyond a limit: told, but no sign of a broken client.
            self._answer_error(refusal.code, str(refusal), message.id)

    def _obey(self, message: ClientMessage) -> None:
        if isinstance(message, Authenticate):
            self._authenticate(message)
        elif self.principal is None:
            raise ClientMessageError(
                "unauthenticated", 'the first message must be {"action":"auth","token":…}'
            )
        elif isinstance(message, Subscribe):
            self.subscribe(message)
        elif isinstance(message, Unsubscribe):
            self._answer(self._subscriptions.unsubscribe(message))
        elif isinstance(message, Ping):
            answer: dict[str, Any] = {"type": "pong", "id": message.id}
            if position := self._subscriptions.position():
                answer["position"] = position
            self._answer(answer)
        else:
            self._answer(self._subscriptions.listed(message))

    def _authenticate(self, message: Authenticate) -> None:
        principal = self._context.authenticator.check(message.token)
        if principal is None:
            self._answer_error("unauthorized", "the token is not valid", message.id)
            self.close(CLOSE_TOKEN_WRONG, "the token is not valid")
            return
        if not principal.grant.allows(TICKS):
            self._answer_error(
                "forbidden", "this token is not for live data: it lacks the scope ticks", message.id
            )
            self.close(CLOSE_TOKEN_WRONG, "the token lacks the scope ticks")
            return
        if self.principal is None and not self._has_place(principal):
            self._answer_error("too_many_clients", "all places of this token are taken", message.id)
            self.close(CLOSE_NO_PLACE, "all places of this token are taken; try later")
            return
        if self.principal is not None and principal.grant != self.principal.grant:
            self._subscriptions.clear()
        self.principal = principal
        self._answer({"type": "authenticated", "id": message.id, "name": principal.name})

    def catalogue_changed(self) -> None:
        """Bring the subscriptions into line with the instruments there are now."""
        grant = self.principal.grant if self.principal is not None else EVERYTHING
        for refusal in self._subscriptions.catalogue_changed(grant):
            self._answer_error(refusal.code, str(refusal))

    def resync(self) -> None:
        """Tell the client the new epoch: what it remembers of positions cannot be resumed from."""
        if self.principal is not None and len(self._subscriptions):
            self._answer(self._subscriptions.resync())

    @property
    def instruments(self) -> int:
        """How many instruments the client watches."""
        return len(self._subscriptions)

    # ---- sending --------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """Whether the session has ended, or is about to."""
        return self._close_sent_s is not None or self._transport.is_closing()

    @property
    def blocked(self) -> bool:
        """Whether the client must read before more is sent to it."""
        return not self._flow.open or self._transport.get_write_buffer_size() >= WRITE_AHEAD_BYTES

    def flush(self, now_s: float) -> bool:
        """Send what the queue holds, as far as the client keeps up; return whether more could go at once."""
        if self._close_sent_s is not None or self.blocked or self._transport.is_closing():
            return False
        outbox = self.outbox
        self._write(outbox.pop_queue(WRITE_AHEAD_BYTES), now_s)
        return outbox.waiting and not self.blocked

    def serve_paces(self, now_s: float) -> None:
        """Send the pending ticks of every pace that is due, behind whatever the queue holds."""
        while self.flush(now_s):
            pass
        for pace in self.outbox.paces.values():
            if pace.due_s > now_s:
                continue
            while pace.waiting and not (self.closing or self.blocked or self.outbox.waiting):
                self._write(self.outbox.pop_pace(pace, WRITE_AHEAD_BYTES), now_s)
            # What did not go out stays newest-only, and its turn comes soon again.
            every_s = max(pace.every_s, self._least_pace_s)
            pace.due_s = now_s + (every_s if not pace.waiting else min(0.02, pace.every_s))

    def relieve(self, on: bool) -> None:
        """While `on`, send newest values once a second at most and let little wait for the client."""
        limit_bytes = self._context.limits.outbox_bytes
        self._least_pace_s = RELIEF_PACE_S if on else 0.0
        self.outbox.limit_to(limit_bytes // RELIEF_SHARE if on else limit_bytes)

    def next_due_s(self) -> float | None:
        """Return when a pace is due next, None when the client has none."""
        return min((pace.due_s for pace in self.outbox.paces.values()), default=None)

    def check(self, now_s: float) -> None:
        """Do what time asks for: ping, close a client without a token, cut off one that does not read."""
        limits = self._context.limits
        if self._close_sent_s is not None:
            if now_s - self._close_sent_s >= limits.closing_s:
                self.abort(self.close_code, self.close_reason)
        elif self.principal is None and now_s - self.opened_s >= limits.authentication_s:
            self.close(CLOSE_AUTHENTICATION_LATE, "no token came in time")
        elif self._flow.frozen(now_s) or self.outbox.overfull:
            self.abort(CLOSE_NOT_READING, "not reading")
        else:
            ping = self._flow.tick(now_s)
            if ping is not None:
                self._transport.write(ping_frame(ping))

    def lag_ms(self, now_s: float) -> int:
        """Return how far behind the client reads, in ms."""
        return self._flow.lag_ms(now_s)

    def _write(self, frames: list[bytes], now_s: float) -> None:
        count = len(frames)
        if count == 0:
            return
        data = frames[0] if count == 1 else b"".join(frames)
        size = len(data)
        counters = self.counters
        counters.frames_out += count
        counters.bytes_out += size
        ping = self._flow.sent(size, now_s)
        self._send(data if ping is None else data + ping_frame(ping))

    def _send(self, data: bytes) -> None:
        transport = self._transport
        if self._descriptor >= 0 and transport.get_write_buffer_size() == 0:
            try:
                sent = os.write(self._descriptor, data)
            except OSError:
                # Full, or lost: the transport waits for the one and deals with the other.
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        transport.write(data)

    def _answer(self, message: dict[str, Any]) -> None:
        self.outbox.put(text_frame(to_json(message)))

    def _answer_error(self, code: str, message: str, message_id: MessageId = None) -> None:
        self._answer({"type": "error", "id": message_id, "code": code, "message": message})

    # ---- ending ---------------------------------------------------------------------------------

    def close(self, code: int, reason: str) -> None:
        """Send what is queued and a close frame; the connection is cut if the client does not answer it."""
        if self.closing:
            return
        now_s = self._clock.monotonic_s()
        while self.flush(now_s):
            pass
        self._leave(code, reason)
        self._close_sent_s = now_s
        self._transport.write(close_frame(code, reason))

    def abort(self, code: int, reason: str) -> None:
        """Cut the connection at once, throwing away what is on its way."""
        self._leave(code, reason)
        connection = self._transport.get_extra_info("socket")
        if connection is not None and not self._transport.is_closing():
            # Reset, not FIN: the kernel too must forget what the client never reads.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def heard_close(self, code: int) -> None:
        """Take the client's close frame: answer it, unless it answers ours."""
        if not self.closing:
            self._leave(code, "closed by the client")
            self._close_sent_s = self._clock.monotonic_s()
            self._transport.write(close_frame(1000, ""))

    def heard_end(self, code: int) -> None:
        """Send nothing more: a close frame with this code was sent, or the connection is gone."""
        self._leave(code, "the connection ended")
        self._close_sent_s = self._clock.monotonic_s()

    def ended(self) -> None:
        """Let go of everything; the connection is gone."""
        self._leave(self.close_code, self.close_reason)

    def _leave(self, code: int, reason: str) -> None:
        if self.close_code == 0:
            self.close_code, self.close_reason = code, reason
        self._subscriptions.clear()
