"""Several processes on this machine that train one model together, as workers on several machines do."""

from __future__ import annotations

import json
import socket


def cluster(workers: int = 2) -> list[dict[str, str]]:
    """What the environment of each worker has in addition."""
    with_ports = [socket.socket() for _ in range(workers)]
    for one in with_ports:
        one.bind(("127.0.0.1", 0))
    hosts = [f"127.0.0.1:{one.getsockname()[1]}" for one in with_ports]
    for one in with_ports:
        one.close()
    return [
        {"TF_CONFIG": json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}})}
        for index in range(workers)
    ]
