"""Clusters of this machine listen on the loopback interface alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import psutil

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def _listening(process: psutil.Process) -> set[str]:
    """Addresses that a process and its descendants listen on."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            connections = one.net_connections(kind="tcp")
        except psutil.NoSuchProcess:
            continue
        found |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    return found


def test_the_cluster_of_these_tests_stays_on_loopback(cluster: Any) -> None:
    addresses = _listening(psutil.Process())
    assert "127.0.0.1" in addresses
    assert addresses <= LOOPBACK


_LOCAL = """
import json, sys
sys.path.insert(0, sys.argv[1])
import psutil
from hashlens.distributed.cluster import connect
from test_cluster import _listening
ray = connect("local")
ray.get(ray.remote(lambda: 1).remote())
print(json.dumps([sorted(_listening(psutil.Process())), ray.nodes()[0]["NodeManagerAddress"]]))
"""


def test_a_local_cluster_stays_on_loopback() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _LOCAL, str(__file__).rsplit("/", 1)[0]],
        capture_output=True,
        text=True,
        check=True,
    )
    addresses, node = json.loads(answer.stdout.splitlines()[-1])
    assert addresses
    assert set(addresses) <= LOOPBACK
    assert node == "127.0.0.1"


def test_where_no_cluster_is_the_message_says_what_to_do() -> None:
    code = "from hashlens.distributed.cluster import connect; connect('127.0.0.1')"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 1
    assert "no Ray cluster answers at 127.0.0.1" in answer.stderr
    assert "ray start --head" in answer.stderr
