"""Every RPC of the Eliza service, called with the synchronous and with the asynchronous client."""

from __future__ import annotations

import asyncio
import sys
import warnings

from eliza_pb2 import (
    ConverseRequest,
    GreetRequest,
    IntroduceRequest,
    PontificateRequest,
    SayRequest,
)
from eliza_pb2_connect import AsyncElizaServiceClient, ElizaServiceClient

from connectrpc.errors import ConnectError

THOUGHTS = ["I am tired.", "I need a holiday.", "It is because of my work."]


def call_synchronously(base_url: str) -> None:
    with ElizaServiceClient(base_url) as eliza:
        print("say         ", eliza.say(SayRequest(sentence="I feel lost in RPC.")).sentence)

        for introduction in eliza.introduce(IntroduceRequest(name="Ada")):
            print("introduce   ", introduction.sentence)

        print("pontificate ", eliza.pontificate(PontificateRequest(sentence=it) for it in THOUGHTS).sentence)

        for reply in eliza.converse(ConverseRequest(sentence=it) for it in THOUGHTS):
            print("converse    ", reply.sentence)

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            print("greet       ", eliza.greet(GreetRequest(name="Ada")).sentence)
            print("             ", caught[0].category.__name__, caught[0].message, sep="  ")

        # The low-level form gives headers and trailers, and does not raise.
        output = eliza.call_say(SayRequest(sentence="Hello!"), extra_headers={"eliza-mood": "curious"})
        print("headers      eliza-mood:", output.response_headers()["eliza-mood"])
        print("trailers     eliza-words:", output.response_trailers()["eliza-words"])

        try:
            eliza.say(SayRequest())
        except ConnectError as error:
            print("error       ", error)
            for detail in error.details:
                print("detail      ", detail.type, "=", str(detail.message()).strip())

        # A deadline is for the whole call, streams included.
        try:
            for introduction in eliza.introduce(IntroduceRequest(name="Ada"), timeout_seconds=0.3):
                print("in time     ", introduction.sentence)
        except ConnectError as error:
            print("too late    ", error)


async def call_asynchronously(base_url: str) -> None:
    async with AsyncElizaServiceClient(base_url, codec="json") as eliza:
        print("say         ", (await eliza.say(SayRequest(sentence="I feel lost in RPC."))).sentence)

        async with eliza.call_introduce(IntroduceRequest(name="Ada")) as introductions:
            print("headers      eliza-mood:", introductions.response_headers()["eliza-mood"])
            async for introduction in introductions:
                print("introduce   ", introduction.sentence)

        print("pontificate ", (await eliza.pontificate(PontificateRequest(sentence=it) for it in THOUGHTS)).sentence)

        async for reply in eliza.converse(ConverseRequest(sentence=it) for it in THOUGHTS):
            print("converse    ", reply.sentence)

        with warnings.catch_warnings(record=True):
            print("greet       ", (await eliza.greet(GreetRequest(name="Ada"))).sentence)

        try:
            await eliza.say(SayRequest())
        except ConnectError as error:
            print("error       ", error)


if __name__ == "__main__":
    print("\nThe synchronous client, on urllib3, with messages in proto:")
    call_synchronously(sys.argv[1])
    print("\nThe asynchronous client, on aiohttp, with messages in JSON:")
    asyncio.run(call_asynchronously(sys.argv[1]))
