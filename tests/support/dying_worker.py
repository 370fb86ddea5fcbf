"""A worker's program that says why it cannot run, and ends. Standard library only."""

import json
import socket
import sys

if __name__ == "__main__":
    told = json.loads(sys.argv[sys.argv.index("--worker") + 1])
    with socket.socket(fileno=told["control"]) as line:
        line.sendall(b'{"kind": "failed", "cause": "the moon is in the way"}\n')
    sys.exit(1)
