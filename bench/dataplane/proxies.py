"""Envoy and nginx as relays of plain RPCs: what they are started with. Nothing is started here.

Both as somebody would run them in production for streamed gRPC, on one worker, so that they
compare with one worker of the router: HTTP/2 on both sides, connections to the engine kept, no
limit that the benchmark could meet, no access log. Neither authenticates nor accounts, which the
router does: that favours them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.dataplane.plan import PLAIN_STREAMS_PER_CONNECTION
from tools.cluster.process import ProcessSpec

_ENDLESS = 1_000_000

# What Envoy's own guide for the edge recommends.
_BUFFER = 32 * 1024
_WINDOWS = {"initial_stream_window_size": 65_536, "initial_connection_window_size": 1_048_576}


def find_envoy() -> str | None:
    """The Envoy beside this Python first: its version is pinned."""
    beside = Path(sys.executable).parent / "envoy"
    return str(beside) if beside.exists() else shutil.which("envoy")


def find_nginx() -> str | None:
    """Debian's nginx, also for users whose PATH lacks sbin."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def version_of(binary: str) -> str:
    """The number in what the program says of itself."""
    flag = "-v" if binary.endswith("nginx") else "--version"
    done = subprocess.run([binary, flag], check=False, capture_output=True, text=True, timeout=20)
    found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
    return found[0] if found else "unknown"


@dataclass(frozen=True)
class Door:
    """Where a proxy listens, and the door of the engine that it leads to; host:port both."""

    name: str
    address: str
    engine: str


def envoy(binary: str, folder: Path, doors: Sequence[Door]) -> ProcessSpec:
    """Envoy with one listener, one route and one cluster for each door; the first is probed."""
    config = folder / "envoy.json"
    bootstrap = {
        "static_resources": {
            "listeners": [_listener(door) for door in doors],
            "clusters": [_cluster(door) for door in doors],
        }
    }
    config.write_text(json.dumps(bootstrap, indent=2) + "\n", encoding="utf-8")
    return ProcessSpec(
        name="envoy",
        argv=(
            *(binary, "--config-path", str(config), "--concurrency", "1"),
            *("--disable-hot-restart", "--log-level", "warn"),
        ),
        probe="grpc",
        address=doors[0].address,
        drain=3.0,
    )


def _listener(door: Door) -> dict[str, Any]:
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network."
        "http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": door.name,
        "codec_type": "HTTP2",
        "http2_protocol_options": {"max_concurrent_streams": 1000, **_WINDOWS},
        "stream_idle_timeout": "0s",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": door.name,
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/", "grpc": {}},
                            "route": {"cluster": door.name, "timeout": "0s"},
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
    }
    return {
        "name": door.name,
        "address": _socket(door.address),
        "per_connection_buffer_limit_bytes": _BUFFER,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }


def _cluster(door: Door) -> dict[str, Any]:
    thresholds = dict.fromkeys(
        ("max_connections", "max_pending_requests", "max_requests", "max_retries"), _ENDLESS
    )
    return {
        "name": door.name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "per_connection_buffer_limit_bytes": _BUFFER,
        "load_assignment": {
            "cluster_name": door.name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _socket(door.engine)}}]}],
        },
        "circuit_breakers": {"thresholds": [thresholds]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3."
                "HttpProtocolOptions",
                # Below what our servers take: they count a stream a moment longer than Envoy does,
                # and refuse one too many.
                "explicit_http_config": {
                    "http2_protocol_options": {
                        "max_concurrent_streams": PLAIN_STREAMS_PER_CONNECTION - 10,
                        **_WINDOWS,
                    }
                },
            }
        },
    }


def _socket(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def nginx(binary: str, folder: Path, doors: Sequence[Door]) -> ProcessSpec:
    """nginx with one worker and kept connections to the engine."""
    config = folder / "nginx.conf"
    config.write_text(nginx_config(folder, doors), encoding="utf-8")
    return ProcessSpec(
        name="nginx",
        argv=(binary, "-c", str(config), "-p", str(folder)),
        probe="grpc",
        address=doors[0].address,
        drain=3.0,
    )


def nginx_config(folder: Path, doors: Sequence[Door]) -> str:
    """The whole configuration. nginx opens one connection to the engine for each running call."""
    servers = "".join(_server(door) for door in doors)
    return f"""\
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log warn;
events {{ worker_connections 20000; multi_accept on; }}
http {{
    access_log off;
    tcp_nodelay on;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    keepalive_requests {_ENDLESS};
    keepalive_timeout 1h;
    http2_max_concurrent_streams 1000;
{servers}}}
"""


def _server(door: Door) -> str:
    return f"""\
    upstream {door.name} {{
        server {door.engine};
        keepalive 2000;
        keepalive_requests {_ENDLESS};
        keepalive_timeout 1h;
    }}
    server {{
        listen {door.address} http2 backlog=4096;
        location / {{
            grpc_pass grpc://{door.name};
            grpc_read_timeout 1h;
            grpc_send_timeout 1h;
            grpc_socket_keepalive on;
        }}
    }}
"""
