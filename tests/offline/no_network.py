"""Refuses every connection that leaves this machine, in this process, however deep the code that asks for it.

An audit hook, because it also sees sockets that a library made before, or makes in C. What was refused is kept, as
those who ask often swallow the error; $REFUSED_CONNECTIONS may name a file that gets a line for each.
"""

import ipaddress
import os
import socket
import sys

refused: list[str] = []


def is_local(host: object) -> bool:
    """Whether a host, as text or bytes, is this machine by name or by a loopback address; nothing is looked up."""
    text = host.decode() if isinstance(host, bytes) else host
    if text in (None, "", "localhost", "0.0.0.0", "::", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(str(text).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not event.startswith("socket."):
        return
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = (
            address[0] if isinstance(address, tuple) and address else None
        )  # a path of this machine, or a socket pair
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    else:
        return
    if is_local(host):
        return
    refused.append(f"{event} {host!r}")
    if path := os.environ.get("REFUSED_CONNECTIONS"):
        with open(path, "a") as file:
            file.write(refused[-1] + "\n")
    raise PermissionError(f"a test, or what it started, asked for the network: {refused[-1]}")


def install() -> None:
    """For the rest of this process."""
    sys.addaudithook(_hook)
