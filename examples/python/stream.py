"""Prints an answer as it comes: python stream.py MODEL PROMPT [MAX_TOKENS]"""

from __future__ import annotations

import sys
import time

import grpc
from connect import authorize, explain, router

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2_grpc


def ask(request: pb.GenerateRequest) -> None:
    """Prints the answer and its receipt. Raises grpc.RpcError."""
    metadata = authorize()
    last = pb.GenerateChunk()
    with router() as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        # Leaving the block, with Ctrl-C too, closes the channel, and that cancels the call.
        for last in stub.StreamGenerate(request, metadata=metadata, timeout=60):
            print(last.text, end="", flush=True)
    print()
    receipt = f"{pb.Tier.Name(last.receipt.tier)} {last.receipt.backend_id}"
    print(f"receipt: {receipt}, {last.usage.completion_tokens} tokens", file=sys.stderr)


def main() -> int:
    """0 for an answer, 1 for an error, 130 for Ctrl-C."""
    if len(sys.argv) < 3:
        print("usage: python stream.py MODEL PROMPT [MAX_TOKENS]", file=sys.stderr)
        return 2
    message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=sys.argv[2])])
    limit = int(sys.argv[3]) if len(sys.argv) > 3 else 64
    request = pb.GenerateRequest(
        model=sys.argv[1],
        messages=[message],
        sampling=pb.Sampling(temperature=0, max_tokens=limit),
    )
    try:
        for again in (True, False):
            try:
                ask(request)
            except grpc.RpcError as error:
                wait = explain(error)
                if wait is None or not again:
                    return 1
                print(f"once more in {wait} s", file=sys.stderr)
                time.sleep(wait)
            else:
                return 0
    except KeyboardInterrupt:
        print("cancelled", file=sys.stderr)
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
