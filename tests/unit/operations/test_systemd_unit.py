"""The shipped systemd unit: what the daemon relies on, and that systemd itself finds nothing wrong."""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import main
from config.settings import PROJECT_ROOT
from services.daemon import process

UNIT = PROJECT_ROOT / "deploy" / "systemd" / "marketd.service"
EXPECTED = {
    "Type": "notify",
    "NotifyAccess": "main",
    "WatchdogSec": "30",
    "Restart": "on-failure",
    "RestartSec": "2",
    "RestartPreventExitStatus": str(main.EXIT_CONFIGURATION),
    "StartLimitBurst": "5",
    "TimeoutStopSec": "30",
    "KillMode": "mixed",
    "LimitNOFILE": "8192",
    "StateDirectoryMode": "0700",
    "UMask": "0077",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectControlGroups": "yes",
    "ProtectClock": "yes",
    "ProtectHostname": "yes",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "CapabilityBoundingSet": "",
    "SystemCallArchitectures": "native",
}


def directives() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found[name].append(value)
    return found


def test_the_unit_says_what_the_daemon_relies_on() -> None:
    found = directives()
    assert {name: found[name] for name in EXPECTED} == {name: [value] for name, value in EXPECTED.items()}
    assert found["SystemCallFilter"] == ["@system-service", "~@privileged @resources"]
    assert "MemoryMax" in found
    assert "TasksMax" in found
    # A stop is hurried, then cut, before systemd loses its patience.
    assert main.WATCHDOG.stop_within_s < int(EXPECTED["TimeoutStopSec"])
    assert process.STOP_WITHIN_S + process.HURRIED_WITHIN_S < 20
    assert main.WATCHDOG.dump_after_s < int(EXPECTED["WatchdogSec"])


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    """Where there is no systemd its sections and directives are at least well-formed."""
    analyze = shutil.which("systemd-analyze")
    text = UNIT.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if line.startswith("[")] == ["[Unit]", "[Service]", "[Install]"]
    assert all("=" in line for line in lines if not line.startswith("["))
    if analyze is None:
        return
    # The paths and the account of a real installation are not here.
    copy = tmp_path / "marketd.service"
    for there, here in (
        ("/opt/marketd/.venv/bin/python", "/bin/sh"),
        ("WorkingDirectory=/opt/marketd", "WorkingDirectory=/"),
        ("User=marketd\nGroup=marketd", "User=root\nGroup=root"),
    ):
        assert there in text
        text = text.replace(there, here)
    copy.write_text(text, encoding="utf-8")
    outcome = subprocess.run(
        [analyze, "verify", "--man=no", copy], capture_output=True, text=True, timeout=30, check=False
    )
    complaints = [line for line in outcome.stderr.splitlines() if "marketd.service" in line]
    assert complaints == [], outcome.stderr


def test_the_gateways_unit_differs_in_what_a_gateway_is_and_in_nothing_else() -> None:
    template = UNIT.with_name("marketd-gateway@.service")
    daemon = [line for line in UNIT.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    gateway = [line for line in template.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert [two for one, two in zip(daemon, gateway, strict=True) if one != two] == [
        "Description=marketd gateway on port %i, clients served from Redis",
        "ExecStart=/opt/marketd/.venv/bin/python /opt/marketd/main.py run --role gateway",
        "EnvironmentFile=/etc/marketd/gateway.env",
        "Environment=API_PORT=%i STATE_DIR=/var/lib/marketd-gateway/%i LOG_FORMAT=json PYTHONUNBUFFERED=1",
        "StateDirectory=marketd-gateway/%i",
    ]
