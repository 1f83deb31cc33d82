"""The README's cluster section, copied and pasted into a shell: a real etcd, three engines, a service."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.etcd import find_etcd, free_port

ROOT = Path(__file__).resolve().parents[2]
_BASH = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_cluster_section_works_as_it_stands(tmp_path: Path) -> None:
    find_etcd()
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## A cluster on one machine") :]
    blocks = _BASH.findall(section[: section.index("\n## ")])
    assert len(blocks) == 2
    client, peer, http = free_port(), free_port(), free_port()
    script = "\n".join(blocks).replace("127.0.0.1:2379", f"127.0.0.1:{client}").replace("8000", str(http))
    etcd = {
        "ETCD_LISTEN_CLIENT_URLS": f"http://127.0.0.1:{client}",
        "ETCD_ADVERTISE_CLIENT_URLS": f"http://127.0.0.1:{client}",
        "ETCD_LISTEN_PEER_URLS": f"http://127.0.0.1:{peer}",
        "ETCD_INITIAL_ADVERTISE_PEER_URLS": f"http://127.0.0.1:{peer}",
        "ETCD_INITIAL_CLUSTER": f"default=http://127.0.0.1:{peer}",
    }
    (tmp_path / ".venv").symlink_to(sys.prefix)
    env = {**os.environ, **etcd, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_RUNTIME_DIR": ""}
    shell = subprocess.Popen(
        ["bash", "-c", script], cwd=tmp_path, env=env, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        printed, _ = shell.communicate(timeout=800)
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait(10)
    logs = "".join(path.read_text() for path in sorted(tmp_path.glob("*.log")))
    assert "The capital of France is Paris." in printed, printed + logs
    before, after = printed.split("b has drained and left")
    assert re.findall(r"^([abc]) +ready ", before, re.MULTILINE) == ["a", "b", "c"]
    assert re.findall(r"^([abc]) +ready ", after, re.MULTILINE) == ["a", "c"]
    assert "Traceback" not in logs
