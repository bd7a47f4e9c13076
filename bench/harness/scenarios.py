"""What is measured. Each scenario yields rows (one contender each) and checks
(the project's targets, met or missed)."""

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from . import contenders, mail, servers
from .contenders import Fetchmail, Getmail, Mpop, Rpop, Stuck, measure

MEBI = 1024 * 1024


class Row:
    """The runs of one contender."""

    def __init__(self, name, count, kind, unit="msg/s"):
        self.name, self.count, self.kind, self.unit = name, count, kind, unit
        self.samples = []
        self.trouble = ""

    @property
    def rates(self):
        return [self.count / sample.seconds for sample in self.samples]

    @property
    def rate(self):
        return statistics.median(self.rates) if self.samples else 0.0

    def data(self):
        return {
            "name": self.name, "kind": self.kind, "unit": self.unit, "count": self.count,
            "trouble": self.trouble,
            "seconds": [sample.seconds for sample in self.samples],
            "rates": self.rates,
            "rate": self.rate,
            "cpu": statistics.median([sample.cpu for sample in self.samples]) if self.samples else 0,
            "rss": max([sample.rss for sample in self.samples], default=0),
        }


class Table:
    """Rows measured in turns, so that a busy minute falls on all alike."""

    def __init__(self, bench, title, note=""):
        self.bench, self.title, self.note = bench, title, note
        self.entries = []
        self.checks = []

    def add(self, row, setup, runs=None):
        """`setup(folder)` prepares one run: (argv, env, verify)."""
        if self.bench.only and not any(word in row.name for word in self.bench.only):
            return row
        self.entries.append((row, setup, runs))
        return row

    def run(self):
        for turn in range(self.bench.runs):
            for row, setup, runs in self.entries:
                if row.trouble or turn >= (runs or self.bench.runs):
                    continue
                self._once(row, setup)
        for row, _, _ in self.entries:
            self.bench.say(f"  {row.name:<44} {row.rate:>10.0f} {row.unit}"
                           + (f"  {row.data()['rss'] / MEBI:7.1f} MiB" if row.samples else "")
                           + (f"   {row.trouble}" if row.trouble else ""))
        return self

    def _once(self, row, setup):
        folder = self.bench.fresh()
        try:
            argv, env, verify = setup(folder)
            sample = measure(argv, folder, env)
            wrong = verify(sample)
        except Stuck as stuck:
            wrong = str(stuck)
        if wrong:
            row.trouble = wrong
            self.bench.say(f"  {row.name}: {wrong}; see {folder}/output")
            return
        row.samples.append(sample)
        if not self.bench.keep:
            self.bench.discarded.add(folder)

    def check(self, what, measured, relation, target, unit=""):
        met = measured >= target if relation == ">=" else measured <= target
        self.checks.append({"what": what, "measured": measured, "relation": relation,
                            "target": target, "unit": unit, "met": bool(met)})
        self.bench.say(f"  {'met   ' if met else 'MISSED'} {what}: {measured:.3g}{unit} (target {relation} {target:g}{unit})")

    def data(self):
        return {"title": self.title, "note": self.note, "checks": self.checks,
                "rows": [row.data() for row, _, _ in self.entries]}


class Bench:
    """The servers, the folders and the options of one run of the harness."""

    def __init__(self, options, root, driver, binary):
        self.options = options
        self.quick, self.runs, self.keep = options.quick, options.runs, options.keep
        self.only = options.only
        self.root, self.driver = root, driver
        self.children = servers.Children()
        self.dovecot = servers.Dovecot(self.children, root / "dovecot")
        self.sink = servers.Sink(self.children, driver, root / "sink.log")
        self.smtp_sink = servers.SmtpSink(self.children, root / "smtp-sink.log")
        self.discarded = mail.Discarded(root / "discarded")
        self.boxes = mail.Mailboxes(self.dovecot.mail, self.dovecot.owner, self.warm, self.discarded)
        self.rpop, self.mpop, self.getmail, self.fetchmail = Rpop(binary), Mpop(), Getmail(), Fetchmail()
        self.turn = 0
        self.proxies = {}

    def say(self, text):
        print(text, file=sys.stderr, flush=True)

    def fresh(self):
        self.turn += 1
        folder = self.root / "runs" / f"{self.turn:04}"
        folder.mkdir(parents=True)
        return folder

    def warm(self, user):
        for _ in range(2):
            subprocess.run(
                [self.driver, "retrieve", "--addr", f"127.0.0.1:{self.dovecot.pop3}", "--user", user, "--pass", "secret"],
                check=True, stdout=subprocess.DEVNULL,
            )

    def proxy(self, round_trip):
        """Every server's port behind a round trip of so many milliseconds."""
        if round_trip not in self.proxies:
            s = self.sink
            ports = [self.dovecot.pop3, s.smtp, s.smtp_chunking, s.smtp_quick, s.lmtp, s.lmtp_chunking]
            self.proxies[round_trip] = servers.Proxy(
                self.children, self.driver, round_trip, ports, self.root / f"proxy-{round_trip}.log"
            )
        return self.proxies[round_trip]

    # What a run must have left behind: None, or what is wrong.

    def emptied(self, user):
        left = self.boxes.left(user)
        return f"{left} messages left on the server" if left else None

    def sunk(self, numbers, user=None):
        counts = self.sink.counts()
        expected = len(numbers)
        if counts["messages"] != expected or counts["sum"] != mail.digest(numbers):
            return f"the sink got {counts['messages']} of {expected} messages, or not each once"
        return self.emptied(user) if user else None

    def filed(self, path, count, user=None):
        got = mail.count_maildir(path)
        if got != count:
            return f"{got} of {count} messages in the Maildir"
        return self.emptied(user) if user else None

    # Raw drivers.

    def raw_retrieve(self, user, count, port=None, delete=False):
        def verify(sample):
            return self.succeeded(sample) or (
                None if json.loads(sample.output)["messages"] == count else f"not {count} messages: {sample.output}")

        argv = [self.driver, "retrieve", "--addr", f"127.0.0.1:{port or self.dovecot.pop3}",
                "--user", user, "--pass", "secret"] + (["--delete"] if delete else [])
        return argv, None, verify

    def raw_deliver(self, proto, port, count, size, chunking=False, connections=1, rcpt="sink@bench.example"):
        argv = [self.driver, "deliver", "--addr", f"127.0.0.1:{port}", "--proto", proto, "--count", count,
                "--size", size, "--connections", connections, "--rcpt", rcpt]
        return argv + (["--chunking"] if chunking else []), None, self.succeeded

    @staticmethod
    def succeeded(sample):
        return None if sample.code == 0 else f"exit code {sample.code}: {sample.output.strip()[-300:]}"

    def table(self, title, note=""):
        self.say(f"\n{title}")
        return Table(self, title, note)

    # Contenders on a mailbox `box`, restored from a template, emptied by the run.

    def one_account(self, table, template, count, pop=None, sink_map=None, peers=True, fetchmail_count=None,
                    sinks=("smtp-chunking", "smtp", "lmtp-chunking", "lmtp", "maildir"), prefix="", scale=1, unit="msg/s"):
        pop = pop or self.dovecot.pop3
        port_of = sink_map or (lambda port: port)
        numbers = range(1, count + 1)
        rows = {}

        def restored(setup):
            def prepare(folder):
                self.boxes.restore("box", template)
                self.sink.reset()
                return setup(folder)
            return prepare

        def failing(sample, wrong):
            return self.succeeded(sample) or wrong()

        ports = {
            "smtp-chunking": (Rpop.smtp, self.sink.smtp_chunking, "SMTP sink with CHUNKING"),
            "smtp": (Rpop.smtp, self.sink.smtp, "SMTP sink"),
            "lmtp-chunking": (Rpop.lmtp, self.sink.lmtp_chunking, "LMTP sink with CHUNKING"),
            "lmtp": (Rpop.lmtp, self.sink.lmtp, "LMTP sink"),
        }
        if self.rpop.available():
            for key in sinks:
                if key in ports:
                    delivery, port, label = ports[key]

                    def to_sink(folder, delivery=delivery, port=port):
                        argv, env = self.rpop.one(folder, pop, "box", delivery(port_of(port)))
                        return argv, env, lambda sample: failing(sample, lambda: self.sunk(numbers, "box"))

                    rows[key] = table.add(Row(f"{prefix}rpop -> {label}", count * scale, "rpop", unit), restored(to_sink))
                elif key == "maildir":

                    def to_maildir(folder):
                        path = folder / "mail"
                        argv, env = self.rpop.one(folder, pop, "box", Rpop.maildir(path))
                        return argv, env, lambda sample: failing(sample, lambda: self.filed(path, count, "box"))

                    rows[key] = table.add(Row(f"{prefix}rpop -> Maildir", count * scale, "rpop", unit), restored(to_maildir))
                elif key == "smtp-sink":

                    def to_postfix(folder):
                        argv, env = self.rpop.one(folder, pop, "box", Rpop.smtp(self.smtp_sink.port))
                        return argv, env, lambda sample: failing(sample, lambda: self.emptied("box"))

                    rows[key] = table.add(Row(f"{prefix}rpop -> smtp-sink", count * scale, "rpop", unit), restored(to_postfix))
                elif key == "dovecot":

                    def to_dovecot(folder):
                        self.discarded.add(self.dovecot.mail / "dest")
                        argv, env = self.rpop.one(folder, pop, "box", Rpop.lmtp(self.dovecot.lmtp))
                        return argv, env, lambda sample: failing(
                            sample, lambda: self.filed(self.dovecot.mail / "dest" / "Maildir", count, "box"))

                    rows[key] = table.add(Row(f"{prefix}rpop -> Dovecot LMTP", count * scale, "rpop", unit), restored(to_dovecot))
        if not peers:
            return rows

        if self.mpop.available():
            def mpop(folder):
                argv, env = self.mpop.one(folder, pop, "box", folder / "mail")
                return argv, env, lambda sample: failing(sample, lambda: self.filed(folder / "mail", count, "box"))

            rows["mpop"] = table.add(Row(f"{prefix}mpop -> Maildir", count * scale, "peer", unit), restored(mpop))
        if self.getmail.available() and peers != "pipelining":
            def getmail(folder):
                argv, env = self.getmail.one(folder, pop, "box", Getmail.lmtp(port_of(self.sink.lmtp)))
                return argv, env, lambda sample: failing(sample, lambda: self.sunk(numbers, "box"))

            rows["getmail"] = table.add(Row(f"{prefix}getmail6 -> LMTP sink", count * scale, "peer", unit), restored(getmail))
        return rows

    def fetchmail_row(self, table, template, count, port, label, pop=None, verify_sink=True, runs=None,
                      scale=1, unit="msg/s"):
        """fetchmail, on a smaller mailbox where it is slow."""
        if not self.fetchmail.available():
            return None

        def setup(folder):
            self.boxes.restore("box", template)
            self.sink.reset()
            argv, env = self.fetchmail.one(folder, pop or self.dovecot.pop3, ["box"], port)
            verify = (lambda: self.sunk(range(1, count + 1), "box")) if verify_sink else (lambda: self.emptied("box"))
            return argv, env, lambda sample: self.succeeded(sample) or verify()

        return table.add(Row(f"fetchmail -> {label}", count * scale, "peer", unit), setup, runs)


def best(rows, keys):
    return max((rows[key].rate for key in keys if key in rows and rows[key].samples), default=0.0)


def ratio(value, base):
    return value / base if base else 0.0


def a(bench):
    """One account, 4 KB messages, no latency, state and mail on disk."""
    count = 2000 if bench.quick else 5000
    size = 4096
    bench.boxes.template("t4k", count, size)
    few = 200  # where a contender or a destination is slow
    bench.boxes.template("t4k-few", few, size)
    table = bench.table(f"a. One account, {count} messages of 4 KB, no latency")
    s = bench.sink
    retr = table.add(Row("raw: RETR, discarding", count, "raw"), lambda f: bench.raw_retrieve("t4k", count))

    def deleting(folder):
        bench.boxes.restore("box", "t4k")
        argv, env, verify = bench.raw_retrieve("box", count, delete=True)
        return argv, env, lambda sample: verify(sample) or bench.emptied("box")

    table.add(Row("raw: RETR and DELE, discarding", count, "raw"), deleting)
    raw = {}
    for key, proto, port, chunking, label in [
        ("smtp", "smtp", s.smtp, False, "SMTP sink"),
        ("smtp-chunking", "smtp", s.smtp_chunking, True, "SMTP sink with CHUNKING"),
        ("lmtp", "lmtp", s.lmtp, False, "LMTP sink"),
        ("lmtp-chunking", "lmtp", s.lmtp_chunking, True, "LMTP sink with CHUNKING"),
        ("smtp-sink", "smtp", bench.smtp_sink.port, False, "smtp-sink"),
    ]:
        raw[key] = table.add(
            Row(f"raw: delivery -> {label}", count, "raw"),
            lambda f, proto=proto, port=port, chunking=chunking: bench.raw_deliver(proto, port, count, size, chunking))

    def raw_dovecot(folder):
        bench.discarded.add(bench.dovecot.mail / "dest")
        return bench.raw_deliver("lmtp", bench.dovecot.lmtp, few, size, rcpt="dest@bench.example")

    raw["dovecot"] = table.add(Row("raw: delivery -> Dovecot LMTP", few, "raw"), raw_dovecot)
    rows = bench.one_account(table, "t4k", count,
                             sinks=("smtp-chunking", "smtp", "lmtp-chunking", "lmtp", "smtp-sink", "maildir"))
    rows |= bench.one_account(table, "t4k-few", few, sinks=("dovecot",), peers=False)
    bench.fetchmail_row(table, "t4k", count, s.smtp_quick, "SMTP sink that acknowledges at once")
    bench.fetchmail_row(table, "t4k-few", few, bench.smtp_sink.port, "smtp-sink", verify_sink=False, runs=1)
    table.run()
    for key in ("smtp", "smtp-chunking", "lmtp", "lmtp-chunking", "smtp-sink", "dovecot"):
        if key in rows and rows[key].samples:
            table.check(f"{rows[key].name}: share of the lower raw ceiling",
                        ratio(rows[key].rate, min(retr.rate, raw[key].rate)), ">=", 0.5)
    if "lmtp" in rows and "getmail" in rows:
        table.check("rpop -> LMTP sink: times getmail6", ratio(rows["lmtp"].rate, rows["getmail"].rate), ">=", 6)
    if "maildir" in rows and "mpop" in rows:
        table.check("rpop -> Maildir: times mpop", ratio(rows["maildir"].rate, rows["mpop"].rate), ">=", 5)
    if "lmtp" in rows and "mpop" in rows:
        table.check("rpop -> LMTP sink: times mpop", ratio(rows["lmtp"].rate, rows["mpop"].rate), ">=", 5)
    return table


def b(bench):
    """A round trip of 50 ms to the POP3 server, then to both servers."""
    size = 4096
    count = 2000 if bench.quick else 5000
    bench.boxes.template("t4k", count, size)
    bench.boxes.template("t4k-mid", 1000, size)
    bench.boxes.template("t4k-both", 2000, size)
    few_count = 40 if bench.quick else 100
    bench.boxes.template("t4k-few", few_count, size)
    proxy = bench.proxy(50)
    pop = proxy[bench.dovecot.pop3]
    far = lambda port: proxy[port]  # noqa: E731
    table = bench.table(f"b. One account, 4 KB messages, 50 ms round trip")
    raw = table.add(Row("raw: RETR at 50 ms", count, "raw"), lambda f: bench.raw_retrieve("t4k", count, pop))
    near = bench.one_account(table, "t4k", count, pop, peers=False, prefix="POP3 at 50 ms: ")
    for row in bench.one_account(table, "t4k-mid", 1000, pop, peers="pipelining", sinks=(), prefix="POP3 at 50 ms: ").values():
        mpop = row
    few = bench.one_account(table, "t4k-few", few_count, pop, peers=True, sinks=(), prefix="POP3 at 50 ms: ")
    bench.fetchmail_row(table, "t4k-few", few_count, bench.sink.smtp_quick, "SMTP sink, POP3 at 50 ms", pop, runs=1)
    s = bench.sink
    table.add(Row("raw: delivery at 50 ms -> SMTP with CHUNKING", count, "raw"),
              lambda f: bench.raw_deliver("smtp", proxy[s.smtp_chunking], count, size, True))
    table.add(Row("raw: delivery at 50 ms -> SMTP, 1 connection", 100, "raw"),
              lambda f: bench.raw_deliver("smtp", proxy[s.smtp], 100, size), runs=1)
    table.add(Row("raw: delivery at 50 ms -> SMTP, 16 connections", 1600, "raw"),
              lambda f: bench.raw_deliver("smtp", proxy[s.smtp], 1600, size, connections=16))
    both = bench.one_account(table, "t4k-both", 2000, pop, far, peers=False, prefix="both at 50 ms: ",
                             sinks=("smtp-chunking", "lmtp-chunking", "smtp", "lmtp"))
    bench.one_account(table, "t4k-few", few_count, pop, far, peers=True, sinks=(), prefix="both at 50 ms: ")
    bench.fetchmail_row(table, "t4k-few", few_count, proxy[s.smtp_quick], "SMTP sink, both at 50 ms", pop, runs=1)
    # The second mpop row of `few` and of `both` says nothing new.
    seen = set()
    entries = []
    for row, setup, runs in table.entries:
        if row.name.endswith("mpop -> Maildir"):
            if "mpop" in seen:
                continue
            seen.add("mpop")
        entries.append((row, setup, 1 if row.name.endswith("getmail6 -> LMTP sink") else runs))
    table.entries = entries
    table.run()
    sinks = ("smtp-chunking", "smtp", "lmtp-chunking", "lmtp")
    for key in sinks + ("maildir",):
        if key in near and near[key].samples:
            table.check(f"{near[key].name}: share of raw RETR", ratio(near[key].rate, raw.rate), ">=", 0.5)
    if near and best(near, sinks):
        table.check("POP3 at 50 ms: rpop's best, times mpop", ratio(best(near, sinks), mpop.rate), ">=", 2)
    if both and best(both, sinks):
        # Without CHUNKING each message has to wait for its 354 (RFC 2920).
        for key in ("smtp-chunking", "lmtp-chunking"):
            if both[key].samples:
                table.check(f"{both[key].name}", both[key].rate, ">=", 300, " msg/s")
    return table


def c(bench):
    """Large messages; the memory of a very large one."""
    tables = []
    for label, count, size in [("100 KB", 300 if bench.quick else 1000, 100_000),
                               ("50 MB", 4 if bench.quick else 10, 50_000_000)]:
        name = "t" + label.replace(" ", "").lower()  # Dovecot lowers what it is given
        bench.boxes.template(name, count, size)
        scale = size / 1e6
        table = bench.table(f"c. One account, {count} messages of {label}, no latency")
        s = bench.sink
        retr = table.add(Row("raw: RETR, discarding", count * scale, "raw", "MB/s"), lambda f: bench.raw_retrieve(name, count))
        raw = {}
        for key, proto, port, chunking, text in [
            ("smtp", "smtp", s.smtp, False, "SMTP sink"),
            ("smtp-chunking", "smtp", s.smtp_chunking, True, "SMTP sink with CHUNKING"),
            ("lmtp", "lmtp", s.lmtp, False, "LMTP sink"),
            ("lmtp-chunking", "lmtp", s.lmtp_chunking, True, "LMTP sink with CHUNKING"),
        ]:
            raw[key] = table.add(
                Row(f"raw: delivery -> {text}", count * scale, "raw", "MB/s"),
                lambda f, proto=proto, port=port, chunking=chunking: bench.raw_deliver(proto, port, count, size, chunking))
        rows = bench.one_account(table, name, count, scale=scale, unit="MB/s")
        bench.fetchmail_row(table, name, count, s.smtp_quick, "SMTP sink that acknowledges at once", runs=1, scale=scale, unit="MB/s")
        table.run()
        for key in raw:
            if key in rows and rows[key].samples:
                table.check(f"{rows[key].name}: share of the lower raw ceiling",
                            ratio(rows[key].rate, min(retr.rate, raw[key].rate)), ">=", 0.7)
        tables.append(table)
    size = 100_000_000 if bench.quick else 1_000_000_000
    label = "100 MB" if bench.quick else "1 GB"
    bench.boxes.template("tbig", 1, size)
    scale = size / 1e6
    table = bench.table(f"c. One message of {label}: peak resident memory")
    retr = table.add(Row("raw: RETR, discarding", scale, "raw", "MB/s"), lambda f: bench.raw_retrieve("tbig", 1), runs=1)
    rows = bench.one_account(table, "tbig", 1, peers=True if bench.options.full else "pipelining", scale=scale, unit="MB/s")
    bench.fetchmail_row(table, "tbig", 1, bench.sink.smtp_quick, "SMTP sink that acknowledges at once", scale=scale, unit="MB/s")
    table.entries = [(row, setup, 1) for row, setup, _ in table.entries]
    table.run()
    for row in rows.values():
        if row.kind == "rpop" and row.samples:
            table.check(f"{row.name}: peak resident", row.data()["rss"] / MEBI, "<=", 24, " MiB")
    return tables + [table, unified(bench, size, label)]


def unified(bench, size, label):
    """The memory of a very large message whose header says whose it is."""
    s, pop, scale = bench.sink, bench.dovecot.pop3, size / 1e6
    table = bench.table(f"c. One message of {label} for a unified account: peak resident memory")
    header = b"X-Original-To: dest@bench.example\n"
    both = b"X-Original-To: dest@bench.example, dest@second.example\n"
    addressed = b"Cc: dest@bench.example\n"
    for name, template, extra, copies, special, delivery, second, sunk in [
        ("X-Original-To -> SMTP sink", "uheader", header, 1, "X-Original-To", Rpop.smtp(s.smtp), None, [1]),
        ("X-Original-To -> LMTP sink with CHUNKING", "uheader", header, 1, "X-Original-To",
         Rpop.lmtp(s.lmtp_chunking), None, [1]),
        ("X-Original-To, two domains -> SMTP sink and LMTP sink", "uboth", both, 1, "X-Original-To",
         Rpop.smtp(s.smtp), Rpop.lmtp(s.lmtp), [1, 1]),
        ("* -> SMTP sink with CHUNKING", "ustar", addressed, 1, "*", Rpop.smtp(s.smtp_chunking), None, [1]),
        ("*, and a copy of it -> SMTP sink", "ucopies", addressed, 2, "*", Rpop.smtp(s.smtp), None, [1]),
    ]:

        def setup(folder, template=template, extra=extra, copies=copies, special=special, delivery=delivery,
                  second=second, sunk=sunk):
            bench.boxes.template(template, 1, size, extra=extra, copies=copies)
            bench.boxes.restore("box", template)
            bench.sink.reset()
            argv, env = bench.rpop.one(folder, pop, "box", delivery, special=special, second=second)
            return argv, env, lambda sample: bench.succeeded(sample) or bench.sunk(sunk, "box")

        # What is retrieved: for each domain, and each copy.
        row = Row(f"rpop, special: {name}", scale * max(copies, len(sunk)), "rpop", "MB/s")
        if bench.rpop.available():
            table.add(row, setup, runs=1)
    table.run()
    for row, _, _ in table.entries:
        if row.samples:
            table.check(f"{row.name}: peak resident", row.data()["rss"] / MEBI, "<=", 32, " MiB")
    return table


def d(bench):
    """A poll of a mailbox that keeps its old messages: nothing new in it."""
    count = 5000 if bench.quick else 50_000
    bench.boxes.template("old", count, 600)
    table = bench.table(f"d. A poll of a mailbox that keeps {count} old messages, none of them new")
    pop = bench.dovecot.pop3
    rows = {}
    states = bench.root / "old-state"
    shutil.rmtree(states, ignore_errors=True)

    def first(name, setup):
        """The first poll fills the contender's memory; it is not measured."""
        folder = states / name
        folder.mkdir(parents=True)
        bench.say(f"  ({name}: first poll)")
        argv, env, verify = setup(folder)
        wrong = verify(measure(argv, folder, env))
        if wrong:
            bench.say(f"  {name}: {wrong}")
            return None
        return folder

    def again(name, setup):
        if bench.only and not any(word in name for word in bench.only):
            return
        folder = first(name, setup)
        if folder:
            def poll(_):
                bench.sink.reset()
                argv, env, _ = setup(folder)
                return argv, env, lambda sample: (
                    (None if sample.code in (0, 1 if name == "fetchmail" else 0) else f"exit code {sample.code}")
                    or ("it fetched old mail again" if bench.sink.counts()["messages"] else None))
            rows[name] = table.add(Row(f"{name}, nothing new", 1, "rpop" if name == "rpop" else "peer", "polls/s"), poll)

    if bench.rpop.available():
        def rpop(folder):
            bench.sink.reset()
            argv, env = bench.rpop.one(folder, pop, "old", Rpop.lmtp(bench.sink.lmtp_chunking), leave=True)
            return argv, env, lambda sample: bench.succeeded(sample) or bench.sunk(range(1, count + 1))
        again("rpop", rpop)

    def mpop(folder):
        argv, env = bench.mpop.one(folder, pop, "old", Path("/dev/shm") / f"rpop-bench-{bench.dovecot.pop3}", keep=True,
                                   uidls=folder / "uidls")
        return argv, env, bench.succeeded
    if bench.mpop.available():
        again("mpop", mpop)
        shutil.rmtree(Path("/dev/shm") / f"rpop-bench-{bench.dovecot.pop3}", ignore_errors=True)

    def getmail(folder):
        bench.sink.reset()
        argv, env = bench.getmail.one(folder, pop, "old", Getmail.lmtp(bench.sink.lmtp), keep=True)
        return argv, env, bench.succeeded
    if bench.getmail.available():
        again("getmail6", getmail)

    def fetchmail(folder):
        bench.sink.reset()
        argv, env = bench.fetchmail.one(folder, pop, ["old"], bench.sink.smtp_quick, keep=True)
        return argv, env, bench.succeeded
    if bench.fetchmail.available():
        again("fetchmail", fetchmail)
    table.run()
    if "rpop" in rows and rows["rpop"].samples:
        if "mpop" in rows and rows["mpop"].samples:
            table.check("rpop: times mpop", ratio(rows["rpop"].rate, rows["mpop"].rate), ">=", 1)
        table.check("rpop: peak resident", rows["rpop"].data()["rss"] / MEBI, "<=", 24, " MiB")
    return table


def e(bench):
    """Many accounts; idle records; silent servers."""
    tables = [accounts(bench)]
    if bench.rpop.available():
        for name, part in (("idle", idle), ("silent", silent)):
            if not bench.only or name in bench.only:
                tables.append(part(bench))
    return tables


def accounts(bench):
    count = 200 if bench.quick else 1000
    kept = bench.root / "many"
    kept.mkdir(parents=True)
    bench.boxes.many("many", count, 4096)
    # Each is opened once, so that all contenders find it indexed.
    argv = [bench.driver, "accounts", "--addr", f"127.0.0.1:{bench.dovecot.pop3}", "--sink",
            f"127.0.0.1:{bench.sink.smtp}", "--proto", "smtp", "--count", count, "--sessions", 16]
    subprocess.run([str(word) for word in argv], check=True, stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    subprocess.run(f"cp -a {bench.dovecot.mail}/many* {kept}/", shell=True, check=True)
    users = [f"many{index:05}" for index in range(count)]
    numbers = range(1, count + 1)
    table = bench.table(f"e. {count} accounts with one message of 4 KB each")

    def emptied():
        left = sum(bench.boxes.left(user) for user in users)
        return f"{left} messages left on the server" if left else None

    def restored(setup):
        def prepare(folder):
            bench.boxes.restore_many("many", kept)
            bench.sink.reset()
            return setup(folder)
        return prepare

    for round_trip in (0, 50):
        proxy = bench.proxy(50) if round_trip else None
        pop = proxy[bench.dovecot.pop3] if proxy else bench.dovecot.pop3
        smtp = proxy[bench.sink.smtp] if proxy else bench.sink.smtp
        quick = proxy[bench.sink.smtp_quick] if proxy else bench.sink.smtp_quick
        lmtp = proxy[bench.sink.lmtp] if proxy else bench.sink.lmtp

        def raw(folder, pop=pop, smtp=smtp):
            argv = [bench.driver, "accounts", "--addr", f"127.0.0.1:{pop}", "--sink", f"127.0.0.1:{smtp}",
                    "--proto", "smtp", "--count", count, "--sessions", 64, "--delete"]
            return argv, None, lambda sample: bench.succeeded(sample) or bench.sunk(numbers) or emptied()

        base = table.add(Row(f"{round_trip} ms: raw driver, 64 sessions", count, "raw", "accounts/s"), restored(raw))
        row = None
        if bench.rpop.available():
            def rpop(folder, pop=pop, smtp=smtp):
                files = bench.rpop.manifests(folder, [(user, "127.0.0.1", pop, user) for user in users], Rpop.smtp(smtp))
                argv = bench.rpop.command(folder, files, "--once")
                return argv, None, lambda sample: bench.succeeded(sample) or bench.sunk(numbers) or emptied()
            row = table.add(Row(f"{round_trip} ms: rpop, 64 processors", count, "rpop", "accounts/s"), restored(rpop))
        if bench.mpop.available():
            def mpop(folder, pop=pop):
                argv, env = bench.mpop.many(folder, pop, users, folder / "mail", 64)
                return argv, env, lambda sample: (bench.succeeded(sample) or bench.filed(folder / "mail", count) or emptied())
            table.add(Row(f"{round_trip} ms: mpop, 64 processes at a time", count, "peer", "accounts/s"), restored(mpop))
        few = count if not round_trip else min(count, 50)
        if bench.fetchmail.available():
            def fetchmail(folder, pop=pop, quick=quick, few=few):
                argv, env = bench.fetchmail.one(folder, pop, users[:few], quick)
                return argv, env, lambda sample: (bench.succeeded(sample) or bench.sunk(range(1, few + 1)))
            table.add(Row(f"{round_trip} ms: fetchmail", few, "peer", "accounts/s"), restored(fetchmail), runs=1)
        table.pairs = getattr(table, "pairs", []) + [(round_trip, base, row)]
    table.run()
    for round_trip, base, row in table.pairs:
        if row and row.samples and base.samples:
            table.check(f"{round_trip} ms: rpop's share of the raw driver", ratio(row.rate, base.rate), ">=", 0.7)
    return table


def resident(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def serving(bench, count, seconds):
    """Resident octets of a settled `rpop run` with `count` records."""
    folder = bench.fresh()
    records = [(f"idle{index:05}", "127.0.0.1", bench.dovecot.pop3, f"many{index % 100:05}") for index in range(count)]
    files = bench.rpop.manifests(folder, records, Rpop.smtp(bench.sink.smtp), poll_every="720h")
    with open(folder / "output", "w") as out:
        process = bench.children.start(
            bench.rpop.command(folder, files, "--listen", f"127.0.0.1:{servers.free_port()}"), stdout=out, stderr=out)
    try:
        last, steady = 0, 0
        end = time.monotonic() + 60
        while steady < seconds and time.monotonic() < end:
            time.sleep(1)
            if process.poll() is not None:
                raise servers.Unavailable(f"rpop ended: {(folder / 'output').read_text()[-500:]}")
            now = resident(process.pid)
            steady = steady + 1 if abs(now - last) < 64 * 1024 else 0
            last = now
        return last
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def idle(bench):
    count = 1000 if bench.quick else 10_000
    table = bench.table(f"e. `rpop run` with {count} idle records")
    small = serving(bench, 10, 4)
    large = serving(bench, count, 4)
    bench.say(f"  10 records {small / MEBI:.1f} MiB, {count} records {large / MEBI:.1f} MiB resident")
    table.note = f"10 records: {small / MEBI:.1f} MiB resident; {count} records: {large / MEBI:.1f} MiB."
    table.check("resident for an idle record", (large - small) / (count - 10) / 1024, "<=", 3, " KB")
    return table


def silent(bench):
    """Good accounts among servers that accept and say nothing: all are due at
    once, the silent ones first, and the good ones' mail is timed. On the first
    start nothing is known of any host; on the second who answers is."""
    mute, good = (100, 50) if bench.quick else (1000, 100)
    quiet = servers.Silent(bench.children, bench.driver, mute, bench.root / "silent.log")
    table = bench.table(f"e. {good} accounts among {mute} silent servers, default settings")
    seconds = {}
    state = None
    for label, hosts in [("alone", []), ("first start", quiet.hosts), ("second start", quiet.hosts)]:
        bench.boxes.restore_many("many", bench.root / "many")
        bench.sink.reset()
        folder = bench.fresh()
        if label == "second start":
            shutil.copytree(state, folder / "state")
            # How the hosts fared is known; the mail, which is the same, is not.
            shutil.rmtree(folder / "state" / "rpopids")
        state = folder / "state"
        records = [(f"a-mute{index:05}", host, quiet.port, "nobody") for index, host in enumerate(hosts)]
        records += [(f"z-good{index:05}", "127.0.0.1", bench.dovecot.pop3, f"many{index:05}") for index in range(good)]
        files = bench.rpop.manifests(folder, records, Rpop.smtp(bench.sink.smtp), processors=None)
        with open(folder / "output", "w") as out:
            began = time.perf_counter()
            process = bench.children.start(bench.rpop.command(folder, files, "--once"), stdout=out, stderr=out)
        end = began + 200
        while bench.sink.counts()["messages"] < good and time.perf_counter() < end and process.poll() is None:
            time.sleep(0.02)
        seconds[label] = time.perf_counter() - began
        got = bench.sink.counts()["messages"]
        peak = resident(process.pid) if process.poll() is None else 0
        bench.say(f"  {label}: {got} of {good} messages after {seconds[label]:.2f} s, {peak / MEBI:.1f} MiB")
        time.sleep(0.5)  # the last polls end
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        if got < good:
            seconds[label] = float("inf")
    table.note = "; ".join(f"{label}: all mail after {value:.2f} s" for label, value in seconds.items()) + "."
    for label in ("first start", "second start"):
        table.check(f"{label}: seconds until the good accounts' mail is there", seconds[label], "<=",
                    max(10.0, 3 * seconds["alone"]), " s")
    return table


ALL = {"a": a, "b": b, "c": c, "d": d, "e": e}
