"""Two requests over one session, the second one cancelled as it begins:
python session.py MODEL PROMPT PROMPT
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterable

import grpc
from connect import authorize, explain, router

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2_grpc
from anabranch.v1 import session_pb2 as wire


def start(number: int, model: str, prompt: str) -> wire.SessionRequestFrame:
    """A frame that starts a request under a number of ours."""
    sampling = pb.Sampling(temperature=0, max_tokens=64)
    request = pb.GenerateRequest(model=model, prompt=prompt, sampling=sampling)
    return wire.SessionRequestFrame(stream=number, start=request)


def run(
    session: Iterable[wire.SessionResponse],
    outgoing: queue.SimpleQueue[wire.SessionRequest | None],
    model: str,
    prompts: list[str],
) -> None:
    """Talks until both requests have ended. Raises grpc.RpcError when the session fails."""
    texts: dict[int, str] = {}
    for said in session:
        if said.HasField("ready"):
            frames = [start(number, model, prompt) for number, prompt in enumerate(prompts, 1)]
            texts = dict.fromkeys(range(1, len(prompts) + 1), "")
            outgoing.put(wire.SessionRequest(frames=frames))
        for frame in said.frames:
            number, chunk = frame.stream, frame.chunk
            if number == 2 and not texts[2] and chunk.text:
                cancel = wire.SessionRequestFrame(stream=2, cancel=wire.SessionCancel())
                outgoing.put(wire.SessionRequest(frames=[cancel]))
            texts[number] += chunk.text
            if frame.last and frame.HasField("error"):
                # A failed request ends alone; the session goes on.
                print(number, frame.error.message)
            elif frame.last:
                print(f"{number} {pb.FinishReason.Name(chunk.finish_reason)}: {texts[number]}")
            if frame.last:
                del texts[number]
        if not texts:
            # Half-closing lets what runs come to its end, then ends the session.
            outgoing.put(None)


def main() -> int:
    """0 for answers, 1 for an error, 130 for Ctrl-C."""
    if len(sys.argv) != 4:
        print("usage: python session.py MODEL PROMPT PROMPT", file=sys.stderr)
        return 2
    outgoing: queue.SimpleQueue[wire.SessionRequest | None] = queue.SimpleQueue()
    try:
        metadata = authorize()
        # Leaving the block, with Ctrl-C too, closes the channel, and that cancels the call.
        with router() as channel:
            session = model_pb2_grpc.ModelServiceStub(channel).Session(
                iter(outgoing.get, None), metadata=metadata, timeout=60
            )
            run(session, outgoing, sys.argv[1], sys.argv[2:])
    except grpc.RpcError as error:
        explain(error)
        return 1
    except KeyboardInterrupt:
        print("cancelled", file=sys.stderr)
        return 130
    finally:
        outgoing.put(None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
