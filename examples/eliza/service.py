"""The Eliza service as a WSGI application: ``gunicorn service:app``, with ``gen`` on the path."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from eliza_pb2 import (
    Advice,
    ConverseRequest,
    ConverseResponse,
    GreetRequest,
    GreetResponse,
    IntroduceRequest,
    IntroduceResponse,
    PontificateRequest,
    PontificateResponse,
    SayRequest,
    SayResponse,
)
from eliza_pb2_connect import wsgi_eliza_service

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server import ClientRequest, ClientStream, ServerResponse, ServerStream
from eliza import answer

if TYPE_CHECKING:
    from collections.abc import Iterator


class Eliza:
    """Implements ``ElizaServiceProtocol``: a method for each RPC."""

    def say(self, req: ClientRequest[SayRequest]) -> ServerResponse[SayResponse]:
        sentence = req.msg.sentence
        if not sentence:
            raise ConnectError(
                ConnectErrorCode.INVALID_ARGUMENT,
                "there is nothing to answer",
                details=[Advice(sentence="Say what is on your mind.")],
            )
        return ServerResponse(
            SayResponse(sentence=answer(sentence)),
            headers={"eliza-mood": req.headers.get("eliza-mood", "patient")},
            trailers={"eliza-words": str(len(sentence.split()))},
        )

    def introduce(self, req: ClientRequest[IntroduceRequest]) -> ServerStream[IntroduceResponse]:
        return ServerStream(self._introduction(req.msg.name or "stranger"), headers={"eliza-mood": "friendly"})

    def _introduction(self, name: str) -> Iterator[IntroduceResponse]:
        for sentence in (f"Hello, {name}.", "I am Eliza.", "I listen.", "How are you feeling today?"):
            yield IntroduceResponse(sentence=sentence)
            time.sleep(0.2)

    def pontificate(self, req: ClientStream[PontificateRequest]) -> PontificateResponse:
        heard = [msg.sentence for msg in req]
        return PontificateResponse(
            sentence=f"You said {len(heard)} things. {answer(heard[-1]) if heard else ''}".strip()
        )

    def converse(self, req: ClientStream[ConverseRequest]) -> Iterator[ConverseResponse]:
        for msg in req:
            yield ConverseResponse(sentence=answer(msg.sentence))

    def greet(self, req: ClientRequest[GreetRequest]) -> GreetResponse:
        return GreetResponse(sentence=f"Good day, {req.msg.name}.")


app = wsgi_eliza_service(Eliza())
