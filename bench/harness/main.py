"""The command line of scripts/bench."""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from . import contenders, report, scenarios, servers

PROJECT = Path(__file__).resolve().parent.parent.parent


def parse():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="a|b|c|d|e", help="which to run (all)")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller: minutes, only indicative; writes no docs")
    parser.add_argument("--full", action="store_true", help="also what takes very long or 10 GB of memory")
    parser.add_argument("--runs", type=int, help="runs of each contender (5; quick 2)")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="only rows whose name holds TEXT")
    parser.add_argument("--keep", action="store_true", help="keep the folders of all runs")
    parser.add_argument("--dir", type=Path, default=PROJECT / "target" / "bench-run", help="on a real disk")
    parser.add_argument("--binary", type=Path, default=PROJECT / "target" / "release" / "rpop")
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("--no-docs", action="store_true", help="print only")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a target is missed")
    options = parser.parse_args()
    options.scenarios = options.scenarios or list(scenarios.ALL)
    unknown = [name for name in options.scenarios if name not in scenarios.ALL]
    if unknown:
        parser.error(f"no such scenario: {', '.join(unknown)} (there are {', '.join(scenarios.ALL)})")
    options.runs = options.runs or (2 if options.quick else 5)
    return options


def build(options):
    driver = PROJECT / "target" / "bench" / "release" / "rpop-bench"
    if not options.no_build:
        subprocess.run(["cargo", "build", "--quiet", "--release", "--manifest-path", PROJECT / "bench" / "Cargo.toml",
                        "--target-dir", PROJECT / "target" / "bench"], check=True, cwd=PROJECT)
        if options.binary == PROJECT / "target" / "release" / "rpop":
            subprocess.run(["cargo", "build", "--quiet", "--release", "--bin", "rpop"], check=True, cwd=PROJECT)
    return driver


def machine(folder):
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
    file_system = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": f"{os.cpu_count()} cores, {model}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "disk": file_system,
        "versions": {
            "fetchmail": (contenders.version("fetchmail", "--version").split() or [""] * 4)[3:4],
            "getmail6": contenders.version("getmail", "--version").split()[-1:],
            "mpop": contenders.version("mpop", "--version").split()[-1:],
            "Dovecot": contenders.version("dovecot", "--version").split()[:1],
        },
    }


def main():
    options = parse()
    for tool in ("dovecot", "/usr/bin/time", "cargo"):
        if not shutil.which(tool):
            print(f"bench: {tool} is missing; see docs/benchmarks.md", file=sys.stderr)
            return 2
    driver = build(options)
    root = options.dir.resolve()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    if subprocess.run(["stat", "-f", "-c", "%T", root], capture_output=True, text=True).stdout.strip() == "tmpfs":
        print(f"bench: {root} is on tmpfs, where fsync costs nothing: choose a disk with --dir", file=sys.stderr)
        return 2
    results = PROJECT / "target" / ("bench-quick.json" if options.quick else "bench-results.json")
    known = json.loads(results.read_text()) if results.exists() else {}
    bench = None
    missed = []
    try:
        bench = scenarios.Bench(options, root, driver, options.binary.resolve())
        for name in options.scenarios:
            tables = scenarios.ALL[name](bench)
            tables = tables if isinstance(tables, list) else [tables]
            known[name] = {"machine": machine(root), "runs": options.runs, "tables": [table.data() for table in tables]}
            missed += [check for table in tables for check in table.checks if not check["met"]]
            if not options.only:
                results.write_text(json.dumps(known, indent=1))
    except servers.Unavailable as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 2
    finally:
        if bench:
            bench.children.stop()
        if not options.keep:
            shutil.rmtree(root, ignore_errors=True)
    page = report.render(known)
    if options.quick or options.no_docs or options.only:
        print(report.tables(known, options.scenarios))
    else:
        (PROJECT / "docs").mkdir(exist_ok=True)
        report.write(PROJECT / "docs" / "benchmarks.md", page)
        print(f"docs/benchmarks.md is written; the figures are in {results.relative_to(PROJECT)}")
    for check in missed:
        print(f"missed: {check['what']}: {check['measured']:.3g}{check['unit']} "
              f"(target {check['relation']} {check['target']:g}{check['unit']})", file=sys.stderr)
    return 1 if missed and options.strict else 0
