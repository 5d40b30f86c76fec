"""What is shipped for operation: images, compose, alerts and dashboards name only what exists."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import stat
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from config.settings import PROJECT_ROOT, Settings
from scripts.make_grafana_dashboard import FILE as DASHBOARD
from scripts.make_grafana_dashboard import ROWS, dashboard
from services.gateway.metrics import MetricsPage
from services.live_data_ingestion import IngestionConfig, LiveDataIngestion

DEPLOY = PROJECT_ROOT / "deploy"
DOCKER = DEPLOY / "docker"
_NAME = re.compile(r"\b(marketd_[a-z0-9_]+)\b")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


async def _metrics_page() -> str:
    config = IngestionConfig(
        database_url="postgresql://localhost/none",
        redis_url="redis://localhost/0",
        state_dir=Path("/nowhere"),
    )
    daemon = LiveDataIngestion(config, provider_settings=dict)
    page, _ = MetricsPage(daemon.view, daemon.gateway.client_figures).render()
    return page.decode()


@cache
def metric_names() -> frozenset[str]:
    """Return the names of all samples the metrics page may have."""
    page = asyncio.run(_metrics_page())
    families = list(text_string_to_metric_families(page))
    # A family without samples just now is there all the same; counters get their suffix.
    return frozenset(
        f"{family.name}_total" if family.type == "counter" else family.name for family in families
    )


def expressions() -> list[tuple[str, str]]:
    rules = [
        rule for group in load(DEPLOY / "prometheus" / "alerts.yaml")["groups"] for rule in group["rules"]
    ]
    shown = [(panel[0], expression) for _, row in ROWS for panel in row for expression, _ in panel[4]]
    return [(rule["alert"], rule["expr"]) for rule in rules] + shown


@pytest.mark.parametrize(("where", "expression"), expressions(), ids=lambda value: value[:40])
def test_every_metric_in_alerts_and_dashboards_exists(where: str, expression: str) -> None:
    used = set(_NAME.findall(expression))
    assert used <= metric_names(), f"{where} names what the metrics page has not"
    assert used or "up{" in expression


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for group in load(DEPLOY / "prometheus" / "alerts.yaml")["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert rule["annotations"]["summary"]
            assert len(rule["annotations"]["description"]) > 30


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_rules() -> None:
    rules = DEPLOY / "prometheus" / "alerts.yaml"
    checked = subprocess.run(
        ["promtool", "check", "rules", rules], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_the_dashboard_is_what_its_script_makes() -> None:
    assert json.loads(DASHBOARD.read_text(encoding="utf-8")) == dashboard()


def test_panels_do_not_lie_upon_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


# ---- Docker ---------------------------------------------------------------------------------------------


def stage(name: str) -> str:
    """Return one stage of the Dockerfile; the last one, which has no name, is the image."""
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    stages = re.split(r"^(?=FROM )", text, flags=re.MULTILINE)[1:]
    (found,) = [
        each for each in stages if re.match(rf"FROM \S+ AS {name}\n" if name else r"FROM \S+\n", each)
    ]
    return found


def copy_as_it_says(text: str, folder: Path) -> None:
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        if line.startswith("--from"):
            continue
        *sources, target = line.split()
        for source in sources:
            origin = PROJECT_ROOT / source
            place = folder / target
            if origin.is_dir():
                shutil.copytree(
                    origin,
                    place,
                    ignore=shutil.ignore_patterns("__pycache__", "*.so", ".built"),
                    dirs_exist_ok=True,
                )
            else:
                place = place / origin.name if target in (".", "./") or target.endswith("/") else place
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(origin, place)


def test_the_image_is_compiled_in_a_stage_that_stays_behind(tmp_path: Path) -> None:
    compiling, image = stage("compiled"), stage("")
    assert "gcc" in compiling
    assert "requirements-build.txt" in compiling
    assert "--strict" in compiling
    assert "COPY --from=compiled /build/services/compiled ./services/compiled\n" in image
    assert image.index("COPY services ") < image.index("COPY --from=compiled")
    assert "gcc" not in image
    assert "requirements-build" not in image
    copy_as_it_says(compiling, tmp_path)
    # What is tried there after compiling: the daemon is complete enough to be imported.
    tried = subprocess.run(
        [sys.executable, "-c", "import services.live_data_ingestion"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert tried.returncode == 0, tried.stderr
    assert (tmp_path / "scripts" / "compile.py").is_file()
    allowed = (PROJECT_ROOT / ".dockerignore").read_text(encoding="utf-8")
    for name in ("models", "services", "scripts/compile.py", "requirements-build.txt"):
        assert f"\n!{name}\n" in allowed
    # Modules built on this machine are not for the image.
    assert "\n**/*.so\n" in allowed


def test_the_image_holds_everything_the_daemon_imports_and_runs_as_nobody_special() -> None:
    text = stage("")
    copied = set(re.findall(r"^COPY (\w+) \./\w+$", text, re.MULTILINE))
    packages = {
        path.name for path in PROJECT_ROOT.iterdir() if path.is_dir() and (path / "__init__.py").is_file()
    }
    needed = packages & {"config", "models", "data_migration", "services", "commands"} | {"web"}
    assert copied == needed
    assert re.search(r"^USER marketd$", text, re.MULTILINE)
    assert text.index("USER marketd") < text.index("ENTRYPOINT")
    allowed = (PROJECT_ROOT / ".dockerignore").read_text(encoding="utf-8")
    for name in (*needed, "main.py", "requirements.txt", "deploy/docker/health.py"):
        assert f"\n!{name}\n" in allowed


def test_the_daemon_starts_from_what_the_image_holds(tmp_path: Path) -> None:
    copy_as_it_says(stage(""), tmp_path)
    environment = {"PATH": "/usr/bin:/bin", "STATE_DIR": str(tmp_path / "state"), "API_HOST": "0.0.0.0"}
    started = subprocess.run(
        [sys.executable, "main.py", "run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # It gets as far as its settings, which want tokens on an open address.
    assert started.returncode == 78, started.stderr
    assert "API_TOKENS" in started.stderr


def test_compose_sets_only_settings_there_are_and_no_secret_is_written_down() -> None:
    compose = load(DOCKER / "compose.yaml")
    environment = compose["services"]["marketd"]["environment"]
    known = {name.upper() for name in Settings.model_fields}
    assert set(environment) <= known
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "API_TOKENS", "GRAFANA_PASSWORD"):
        assert re.search(rf"\$\{{{name}:\?", text), f"{name} must be asked for"
    images = [service["image"] for service in compose["services"].values()]
    assert {"redis:8", "postgres:18", "marketd"} <= set(images)
    published = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in published)
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), source


def test_start_makes_secrets_once_for_the_owner_only_and_says_when_docker_is_missing(tmp_path: Path) -> None:
    script = shutil.copy(DOCKER / "start.sh", tmp_path / "start.sh")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("od", "tr", "cat", "mv", "dirname", "sh"):
        (tools / name).symlink_to(shutil.which(name) or name)

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", script], env={"PATH": str(tools)}, capture_output=True, text=True, check=False
        )

    first = start()
    assert first.returncode == 69
    assert "docker is not installed" in first.stderr
    secrets = tmp_path / ".env"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    made = dict(line.split("=", 1) for line in secrets.read_text().splitlines() if not line.startswith("#"))
    assert len({made[name] for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "GRAFANA_PASSWORD")}) == 3
    assert all(len(made[name]) == 48 for name in ("POSTGRES_PASSWORD", "METRICS_TOKEN"))
    assert Settings(api_tokens=made["API_TOKENS"], _env_file=None).tokens()["prometheus"].endswith(":admin")
    start()
    assert dict(line.split("=", 1) for line in secrets.read_text().splitlines() if "=" in line) == made


# ---- systemd --------------------------------------------------------------------------------------------


def test_the_install_script_copies_the_program_and_keeps_settings_over_an_upgrade(tmp_path: Path) -> None:
    source, prefix = tmp_path / "source", tmp_path / "root"
    shutil.copytree(
        PROJECT_ROOT,
        source,
        ignore=shutil.ignore_patterns(
            ".git", ".venv*", ".state*", "__pycache__", "node_modules", ".*_cache", "tests"
        ),
        symlinks=True,
    )
    # The set-up has tests of its own; here it need not install anything.
    (source / "scripts" / "setup.sh").write_text("echo set up\n")

    def install() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", source / "deploy" / "systemd" / "install.sh"],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PREFIX": str(prefix)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert install().returncode == 0
    settings = prefix / "etc" / "marketd" / "marketd.env"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    settings.write_text("DHAN_CLIENT_ID=kept\n")
    (prefix / "opt" / "marketd" / "services" / "gone.py").write_text("")
    again = install()
    assert again.returncode == 0, again.stderr
    assert settings.read_text() == "DHAN_CLIENT_ID=kept\n"
    assert not (prefix / "opt" / "marketd" / "services" / "gone.py").exists()
    assert (prefix / "opt" / "marketd" / "main.py").is_file()
    assert (prefix / "etc" / "systemd" / "system" / "marketd.service").is_file()
