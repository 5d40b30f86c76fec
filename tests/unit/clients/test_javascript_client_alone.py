"""The JavaScript client without a daemon: its own tests under Node, and its types."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.eventually import FACTOR
from tests.support.javascript import CLIENT, node_command


def test_the_clients_own_tests_pass() -> None:
    done = subprocess.run(
        [*node_command(), "--test", "--test-reporter=tap", "test/"],
        cwd=CLIENT,
        capture_output=True,
        text=True,
        timeout=50 * FACTOR,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
    passed = re.search(r"^# pass (\d+)$", done.stdout, re.M)
    assert passed is not None
    assert int(passed.group(1)) >= 20


def test_it_imports_nothing_but_its_own_modules() -> None:
    files = list((CLIENT / "src").glob("*.js"))
    assert len(files) > 5
    for file in files:
        for name in re.findall(r'^(?:import|export)\b[^;]*?\bfrom "([^"]+)"', file.read_text(), re.M):
            assert (file.parent / name).is_file(), (file.name, name)


@pytest.mark.timeout(180)
def test_the_code_fits_its_types_and_the_shipped_types_are_those_of_the_code(tmp_path: Path) -> None:
    node_command()
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("NOT TESTED: the JavaScript client's types, as there is no `npm` on PATH")
    for name in ("package.json", "package-lock.json", "tsconfig.json"):
        shutil.copy(CLIENT / name, tmp_path)
    shutil.copytree(CLIENT / "src", tmp_path / "src")
    if (CLIENT / "node_modules/.bin/tsc").exists():
        (tmp_path / "node_modules").symlink_to(CLIENT / "node_modules")
    else:
        installed = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100 * FACTOR,
            check=False,
        )
        if installed.returncode != 0:
            pytest.skip(f"NOT TESTED: the types, as npm cannot install TypeScript: {installed.stderr[-200:]}")
    (tmp_path / "use.ts").write_text(USE, encoding="utf-8")
    done = subprocess.run(
        ["node_modules/.bin/tsc", "--project", "tsconfig.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    made = {file.name: file.read_text() for file in (tmp_path / "types").glob("*.d.ts")}
    shipped = {file.name: file.read_text() for file in (CLIENT / "types").glob("*.d.ts")}
    assert made == shipped, "run `npm run types` in clients/javascript"
    shutil.rmtree(tmp_path / "src")
    strict = ["--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom"]
    used = subprocess.run(
        ["node_modules/.bin/tsc", *strict, "use.ts"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert used.returncode == 0, used.stdout


USE = """
import { Client, type MarketRecord, type Tick } from "./types/index.js";

const client = new Client("http://d", ["NSE:TCS"], { delivery: "all", token: async () => "secret" });

function show(record: MarketRecord): string {
  switch (record.type) {
    case "tick": { const tick: Tick = record; return `${tick.price} ${tick.quantity ?? "?"}`; }
    case "control": return record.event;
    case "subscribed": return String(record.recovered) + record.snapshot["NSE:TCS"]?.price;
    case "disconnected": return record.reason;
    case "skipped": return String(record.n);
    case "bar": return String(record.close);
    case "notice": return record.code;
    case "trade": return `${record.price} ${record.quantity}`;
    case "quote": return `${record.bid ?? "?"} ${record.ask ?? "?"}`;
    case "depth": return String(record.bids[0]?.[0]) + record.flags.join();
    case "options": return record.expiryDate + record.legs.map((leg) => leg.iv ?? "?").join();
    case "news": return record.headline;
  }
}
for await (const record of client) console.log(show(record), client.resumePoint?.epoch);
// @ts-expect-error there is no such delivery
new Client("http://d", [], { delivery: "some" });
export {};
"""
