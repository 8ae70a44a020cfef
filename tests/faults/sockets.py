"""What the processes of a search listen on, read from /proc."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple


def opened(pid: int) -> list[str]:
    """What a process has open, as /proc names it: paths, "socket:[NUMBER]", ...; nothing where it
    is gone."""
    found = []
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed since
                found.append(os.readlink(entry))
    return found


def name_of(pid: int) -> str:
    """A process's name; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


class Listening(NamedTuple):
    """A socket others can send to: an address and a port, or a path in the file system."""

    kind: str
    place: str
    process: str


def listening(pids: Iterable[int]) -> list[Listening]:
    """Every TCP socket that listens, UDP socket that is bound and Unix socket that listens, of
    these processes, with the name of one that has it open."""
    owners: dict[str, str] = {}
    for pid in pids:
        links = opened(pid)
        name = name_of(pid)
        owners |= {link[8:-1]: name for link in links if link.startswith("socket:[")}
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, remote, state, *rest = line.split()
            waits = state == "0A" if table.startswith("tcp") else remote.strip("0:") == ""
            if waits and rest[5] in owners:
                host, port = local.split(":")
                place = f"{_address(host)} {int(port, 16)}"
                found.append(Listening(table.rstrip("6"), place, owners[rest[5]]))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        accepts = int(fields[3], 16) & 0x10000
        if accepts and fields[6] in owners:
            place = fields[7] if len(fields) > 7 else "(no path)"
            found.append(Listening("unix", place, owners[fields[6]]))
    return found


def is_loopback(place: str) -> bool:
    address = ip_address(place.split()[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def _address(text: str) -> IPv4Address | IPv6Address:
    """The address that /proc/net writes as words of 32 bits in the machine's order."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    return ip_address(socket.inet_ntop(family, b"".join(words)))
