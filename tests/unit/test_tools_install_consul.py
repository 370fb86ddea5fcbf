"""Which mirror Consul is fetched from, read from apt's own sources. Nothing is fetched here."""

from __future__ import annotations

import pytest

from tools.install_consul import CannotInstall, Source, mirror_of, sources

DEB822 = """\
# the main archive
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


def test_a_deb822_source_gives_its_mirror_and_keyring():
    found = mirror_of(sources({"/etc/apt/sources.list.d/debian.sources": DEB822}), "bookworm")
    assert found.uri == "http://mirror.example/debian"
    assert found.signed_by == "/usr/share/keyrings/debian-archive-keyring.gpg"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("deb http://m/debian bookworm main", Source("http://m/debian", ("bookworm",))),
        (
            "deb [arch=amd64 signed-by=/k.gpg] http://m/debian bookworm main contrib",
            Source("http://m/debian", ("bookworm",), "/k.gpg"),
        ),
    ],
)
def test_a_one_line_source_gives_its_mirror(line, expected):
    assert mirror_of(sources({"/etc/apt/sources.list": line}), "bookworm") == expected


@pytest.mark.parametrize(
    "text",
    [
        "# deb http://m/debian bookworm main",
        "deb-src http://m/debian bookworm main",
        "deb http://m/debian-security bookworm-security main",
        "deb http://m/debian trixie main",
    ],
)
def test_other_sources_are_no_mirror(text):
    with pytest.raises(CannotInstall, match="bookworm"):
        mirror_of(sources({"/etc/apt/sources.list": text}), "bookworm")


@pytest.mark.parametrize("flag", ["Enabled: no", "Enabled: false"])
def test_a_disabled_stanza_is_ignored(flag):
    text = DEB822.split("\n\n")[0] + "\n" + flag
    assert not list(sources({"x.sources": text}))
