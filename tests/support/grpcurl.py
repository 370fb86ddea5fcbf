"""grpcurl's command line over buf's curl, which also learns the contracts through reflection.

grpcurl is a Go program that no package registry of the tests has. This takes its arguments and
prints what it prints, errors and their details included; the calls themselves are buf's. It knows
the flags that the documents use and refuses any other. `describe` is grpcurl_describe.py's.

    python -m tests.support.grpcurl -plaintext 127.0.0.1:50051 list
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATUS_OFFSET = 64
"""grpcurl exits with this plus the status: no status looks like a failure of its own."""

_SEVERAL_WORDS = re.compile(r"(?:^|_)([a-z])")


def shell_function(python: str = sys.executable) -> str:
    """The definition that makes `grpcurl` in a POSIX shell this stand-in."""
    return f'grpcurl() {{ "{python}" -m tests.support.grpcurl "$@"; }}\n'


class UsageError(Exception):
    """The arguments are not grpcurl's, or not of the part that is known here."""


@dataclass
class Options:
    """grpcurl's flags, as far as they are known here, and the words after them."""

    plaintext: bool = False
    insecure: bool = False
    expand_headers: bool = False
    emit_defaults: bool = False
    cacert: str = ""
    cert: str = ""
    key: str = ""
    authority: str = ""
    max_time: str = ""
    d: str = ""
    H: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


def parse(arguments: list[str]) -> Options:
    """grpcurl's arguments, flags first as Go has them. Raises UsageError, naming what is wrong."""
    options, rest = Options(), list(arguments)
    while rest and rest[0].startswith("-"):
        flag = rest.pop(0)
        name = flag.lstrip("-").replace("-", "_")
        known = getattr(options, name, None)
        if known is None or name == "words":
            raise UsageError(f"flag provided but not known here: {flag}")
        if isinstance(known, bool):
            setattr(options, name, True)
        elif not rest:
            raise UsageError(f"flag needs an argument: {flag}")
        elif isinstance(known, list):
            known.append(rest.pop(0))
        else:
            setattr(options, name, rest.pop(0))
    options.words = rest
    if len(rest) < 2:
        raise UsageError("Too few arguments.")
    if len(rest) > 2 + (rest[1] in ("list", "describe")):
        raise UsageError("Too many arguments.")
    if options.expand_headers:
        options.H = [_expanded(header) for header in options.H]
    return options


def _expanded(header: str) -> str:
    def value(found: re.Match[str]) -> str:
        try:
            return os.environ[found[1]]
        except KeyError:
            raise UsageError(f"header contains unset environment variable {found[1]}") from None

    return re.sub(r"\$\{(\w+)\}", value, header)


def run(options: Options) -> int:
    """Does what grpcurl does with these arguments; its exit status."""
    address, what, *rest = options.words
    if what == "describe":
        from tests.support import grpcurl_describe

        print(grpcurl_describe.describe(_channel(options, address), rest[0] if rest else ""))
        return 0
    if what == "list":
        return _list(options, address, rest[0] if rest else "")
    return _call(options, address, what.replace("/", ".").rpartition("."))


def _list(options: Options, address: str, service: str) -> int:
    done = _buf(
        options, ["--list-methods" if service else "--list-services", _url(options, address)]
    )
    if done.returncode:
        return _not_reached(done, f"Failed to list services of {address!r}")
    names = done.stdout.split()
    if service:
        # grpcurl separates a method from its service with a point.
        names = [n.replace("/", ".") for n in names if n.startswith(service + "/")]
    print("\n".join(sorted(names)))
    return 0


def _call(options: Options, address: str, method: tuple[str, str, str]) -> int:
    service, _, name = method
    arguments = [argument for header in options.H for argument in ("-H", header)]
    data, stdin = options.d or "{}", None
    if data == "@":
        data, stdin = "@-", sys.stdin.read()
    if options.max_time:
        arguments += ["--timeout", f"{options.max_time}s"]
    if options.emit_defaults:
        arguments.append("--emit-defaults")
    url = f"{_url(options, address)}/{service}/{name}"
    done = _buf(options, [*arguments, "-d", data, url], stdin)
    print(done.stdout, end="")
    if not done.returncode:
        return 0
    try:
        failure = json.loads(done.stderr)
    except ValueError:
        return _not_reached(done, f'Error invoking method "{service}/{name}"')
    print(_status(failure, options, address), file=sys.stderr, end="")
    # buf's exit code is the status, shifted by three bits.
    return STATUS_OFFSET + (done.returncode >> 3)


def _buf(
    options: Options, arguments: list[str], stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    buf = shutil.which("buf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if buf is None:
        raise UsageError("buf is not installed")
    secured = []
    for flag in ("cacert", "cert", "key"):
        if path := getattr(options, flag):
            secured += [f"--{flag}", path]
    if options.authority:
        secured += ["--servername", options.authority]
    if options.insecure:
        secured.append("--insecure")
    return subprocess.run(
        [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *secured, *arguments],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        check=False,
    )


def _url(options: Options, address: str) -> str:
    return f"{'http' if options.plaintext else 'https'}://{address}"


def _not_reached(done: subprocess.CompletedProcess[str], what: str) -> int:
    print(f"{what}: {done.stderr.strip()}", file=sys.stderr)
    return 1


def _status(failure: dict[str, Any], options: Options, address: str) -> str:
    """A status as grpcurl prints it, from buf's account of it."""
    code = _SEVERAL_WORDS.sub(lambda found: found[1].upper(), failure["code"])
    code = {"Ok": "OK", "Cancelled": "Canceled"}.get(code, code)
    lines = ["ERROR:", f"  Code: {code}", f"  Message: {failure.get('message', '')}"]
    details = failure.get("details", [])
    if details:
        lines.append("  Details:")
    for number, detail in enumerate(details, 1):
        raw = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
        shown = json.dumps(_detail(detail["type"], raw, options, address), indent=2)
        prefix = f"  {number})"
        first, *more = shown.splitlines()
        lines.append(f"{prefix}\t{first}")
        lines += [f"{' ' * len(prefix)}\t{line}" for line in more]
    return "\n".join(lines) + "\n"


def _detail(name: str, raw: bytes, options: Options, address: str) -> dict[str, Any]:
    """A detail of a status as JSON. Its type is asked of the server, as grpcurl does."""
    from google.protobuf.json_format import MessageToDict

    from tests.support import grpcurl_describe

    typed = {"@type": f"type.googleapis.com/{name}"}
    message = grpcurl_describe.message_class(_channel(options, address), name)
    if message is None:
        why = f"{name} is not recognized; see @value for raw binary message data"
        return typed | {"@error": why, "@value": base64.b64encode(raw).decode()}
    shown = MessageToDict(message.FromString(raw))
    if isinstance(named := shown.get("metadata"), dict):
        shown["metadata"] = dict(sorted(named.items()))
    return typed | shown


def _channel(options: Options, address: str) -> Any:
    import grpc

    if options.plaintext:
        return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
    credentials = grpc.ssl_channel_credentials(
        *(
            Path(path).read_bytes() if path else None
            for path in (options.cacert, options.key, options.cert)
        )
    )
    return grpc.secure_channel(address, credentials)


def main(arguments: list[str]) -> int:
    """Runs one command line; 2 where it is not understood."""
    try:
        return run(parse(arguments))
    except UsageError as wrong:
        print(f"grpcurl: {wrong}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
