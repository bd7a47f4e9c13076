"""How each contender is configured, and how a run of one is measured."""

import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Sample:
    """One whole-process run."""

    seconds: float
    cpu: float  # user + system, of all its processes
    rss: int  # peak, octets, of its largest process
    code: int
    output: str


class Stuck(Exception):
    """A contender did not end in time."""


def measure(argv, folder, env=None, stdin=None, timeout=600):
    """Runs `argv` to its end. GNU time does the counting: a child started by
    this interpreter itself would be charged for the interpreter's memory."""
    times = folder / "time"
    log = folder / "output"
    command = ["/usr/bin/time", "-o", times, "-f", "%U %S %M"] + [str(word) for word in argv]
    with open(log, "w") as out:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=stdin or subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder,
            env={**os.environ, **(env or {})}, start_new_session=True,
        )
        # wait() with a timeout looks every 50 ms, which is as long as a run.
        late = threading.Event()

        def give_up():
            late.set()
            os.killpg(process.pid, signal.SIGTERM)

        alarm = threading.Timer(timeout, give_up)
        alarm.start()
        code = process.wait()
        seconds = time.perf_counter() - began
        alarm.cancel()
    if late.is_set():
        raise Stuck(f"{argv[0]} took more than {timeout} s; see {log}")
    user, system, kilobytes = times.read_text().split("\n")[-2].split()
    return Sample(seconds, float(user) + float(system), int(kilobytes) * 1024, code, log.read_text())


def version(*argv):
    try:
        text = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
        return text.strip().splitlines()[0] if text.strip() else ""
    except OSError:
        return ""


class Rpop:
    """`rpop run --once` on manifests such as a person would write."""

    name = "rpop"

    def __init__(self, binary):
        self.binary = Path(binary)

    def available(self):
        return self.binary.exists()

    def manifests(self, folder, records, delivery, leave=False, poll_every="24h", processors=64,
                  special=None, second=None):
        """`records`: (name, host, port, user); `delivery`: YAML of spec.delivery.
        With `special` they are unified accounts; `second`: the delivery of a
        second domain."""
        files = folder / "manifests"
        files.mkdir(parents=True, exist_ok=True)
        # For many accounts: as many sessions as the raw driver, all to one host.
        limits = f"  processors: {processors}\n  hostConnections: 0\n" if processors else ""
        common = files / "common.yaml"
        common.touch(0o600)
        common.write_text(f"""\
apiVersion: rpop.dev/v1alpha1
kind: RpopSettings
metadata: {{name: default}}
spec:
  mainDomain: bench.example
  allowSelfPoll: true
{limits}---
apiVersion: rpop.dev/v1alpha1
kind: RpopDomain
metadata: {{name: bench.example}}
spec:
  delivery:
{delivery}
---
apiVersion: v1
kind: Secret
metadata: {{name: pop, namespace: bench}}
stringData: {{password: secret}}
""")
        if second:
            (files / "second.yaml").write_text(f"""\
apiVersion: rpop.dev/v1alpha1
kind: RpopDomain
metadata: {{name: second.example}}
spec:
  delivery:
{second}
""")
        account = "postmaster" if special else "dest"
        unified = f"  special: \"{special}\"\n" if special else ""
        with open(files / "records.yaml", "w") as out:
            for name, host, port, user in records:
                out.write(f"""\
---
apiVersion: rpop.dev/v1alpha1
kind: RpopRecord
metadata: {{name: {name}, namespace: bench}}
spec:
  account: {account}@bench.example
  pollEvery: {poll_every}
  remote: {{host: "{host}:{port}", account: {user}, passwordSecretRef: {{name: pop}}}}
  tls: {{mode: None}}
  leave: {"true" if leave else "false"}
{unified}""")
        return files

    @staticmethod
    def smtp(port):
        return f"    smtp: {{host: 127.0.0.1, port: {port}, tls: {{mode: None}}}}"

    @staticmethod
    def lmtp(port):
        return f"    lmtp: {{host: 127.0.0.1, port: {port}, tls: {{mode: None}}}}"

    @staticmethod
    def maildir(path):
        return f"    maildir: {{path: {path}}}"

    def command(self, folder, files, *more):
        state = folder / "state"
        return [self.binary, "run", "-f", files, "--state", state, *more]

    def one(self, folder, port, user, delivery, leave=False, special=None, second=None):
        records = [("one", "127.0.0.1", port, user)]
        files = self.manifests(folder, records, delivery, leave, special=special, second=second)
        return self.command(folder, files, "--once"), None


class Mpop:
    name = "mpop"

    def available(self):
        return shutil.which("mpop")

    def one(self, folder, port, user, maildir, keep=False, uidls=None):
        config = folder / "mpoprc"
        config.write_text(f"""\
account one
host 127.0.0.1
port {port}
user {user}
password secret
auth user
tls off
keep {"on" if keep else "off"}
uidls_file {uidls or folder / "uidls"}
delivery maildir {maildir}
""")
        config.chmod(0o600)
        for part in ("cur", "new", "tmp"):
            (Path(maildir) / part).mkdir(parents=True, exist_ok=True)
        return ["mpop", f"--file={config}", "--all-accounts", "--quiet"], None

    def many(self, folder, port, users, maildir, parallel):
        """One process an account, `parallel` at a time."""
        for part in ("cur", "new", "tmp"):
            (Path(maildir) / part).mkdir(parents=True, exist_ok=True)
        (folder / "uidls").mkdir()
        (folder / "users").write_text("".join(f"{user}\n" for user in users))
        each = (
            f"mpop --host=127.0.0.1 --port={port} --user={{}} --auth=user --tls=off --keep=off "
            f"--passwordeval='echo secret' --uidls-file={folder}/uidls/{{}} "
            f"--delivery=maildir,{maildir} --quiet"
        )
        return ["sh", "-c", f"xargs -P {parallel} -I{{}} {each} < {folder}/users"], None


class Getmail:
    name = "getmail6"

    def available(self):
        return shutil.which("getmail")

    def one(self, folder, port, user, destination, keep=False):
        config = folder / "getmailrc"
        config.write_text(f"""\
[retriever]
type = SimplePOP3Retriever
server = 127.0.0.1
port = {port}
username = {user}
password = secret

[destination]
{destination}

[options]
verbose = 0
delete = {"false" if keep else "true"}
read_all = false
delivered_to = false
""")
        config.chmod(0o600)
        return ["getmail", "--getmaildir", folder, "--rcfile", config], None

    @staticmethod
    def lmtp(port):
        return f"type = MDA_lmtp\nhost = 127.0.0.1\nport = {port}\nfallback = dest@bench.example\noverride = dest@bench.example"

    @staticmethod
    def maildir(path):
        for part in ("cur", "new", "tmp"):
            (Path(path) / part).mkdir(parents=True, exist_ok=True)
        return f"type = Maildir\npath = {path}/"


class Fetchmail:
    name = "fetchmail"

    def available(self):
        return shutil.which("fetchmail")

    def one(self, folder, port, users, smtp_port, keep=False, lmtp=False):
        config = folder / "fetchmailrc"
        how = ["keep" if keep else "nokeep", "uidl" if keep else "fetchall"]
        lines = [f"poll 127.0.0.1 with protocol pop3 service {port} {'uidl' if keep else ''} auth password"]
        for user in users:
            lines.append(
                f'  user "{user}" password "secret" is dest here smtphost "127.0.0.1/{smtp_port}" '
                f'smtpname "dest@bench.example" {"lmtp" if lmtp else ""} no rewrite sslproto "" '
                f'{" ".join(word for word in how if word != "uidl")}'
            )
        config.write_text("set no bouncemail\nset postmaster \"dest\"\n" + "\n".join(lines) + "\n")
        config.chmod(0o600)
        argv = ["fetchmail", "-f", config, "--silent", "--nosyslog", "--idfile", folder / "fetchids",
                "--pidfile", folder / "fetchmail.pid"]
        return argv, {"FETCHMAILHOME": str(folder), "HOME": str(folder), "LC_ALL": "C"}
