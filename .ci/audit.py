"""`make audit`: bandit over our code, and the pinned dependencies against the list of known vulnerabilities.

The list is on the network. Where it cannot be reached, or knows none of the packages (a mirror has no advisories), that
part is skipped with a line; bandit's findings always fail.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 300


def bandit() -> int:
    """Search the code for dangerous constructs; pyproject.toml and lines in the code say what is excepted, and why."""
    command = [sys.executable, "-m", "bandit", "-q", "-r", ".", "-c", "pyproject.toml"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def pip_audit() -> int:
    """Look each pinned version up; 1 if one has a known vulnerability."""
    options = ["-r", "constraints.txt", "--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json"]
    try:
        command = [sys.executable, "-m", "pip_audit", *options]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        found = json.loads(ran.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        found = []
    looked_up = [each for each in found if "skip_reason" not in each]
    if not looked_up:
        print("pip-audit: skipped, no list of vulnerabilities can be reached from here")
        return 0
    bad = [f"{each['name']} {each['version']}: {vuln['id']}" for each in looked_up for vuln in each["vulns"]]
    print("\n".join(bad) or f"pip-audit: {len(looked_up)} of {len(found)} packages looked up, no known vulnerabilities")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(max(bandit(), pip_audit()))
