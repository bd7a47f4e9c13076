"""Private servers on free loopback ports: Dovecot, smtp-sink, and our own."""

import atexit
import json
import os
import pwd
import shutil
import socket
import subprocess
import time
from pathlib import Path


class Unavailable(Exception):
    """A part that the benchmark needs is not installed or does not start."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_port(port, process=None, log=None, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process is not None and process.poll() is not None:
                break
            time.sleep(0.05)
    detail = Path(log).read_text()[-2000:] if log and Path(log).exists() else ""
    raise Unavailable(f"nothing listens on port {port}\n{detail}")


class Children:
    """Processes that end with the benchmark, whatever happens."""

    def __init__(self):
        self.processes = []
        atexit.register(self.stop)

    def start(self, command, **options):
        process = subprocess.Popen([str(word) for word in command], **options)
        self.processes.append(process)
        return process

    def stop(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        self.processes = []


class Dovecot:
    """POP3 and LMTP over one set of Maildirs; any user, password `secret`."""

    def __init__(self, children, folder):
        if not shutil.which("dovecot"):
            raise Unavailable("dovecot is not installed (Debian: dovecot-core dovecot-pop3d dovecot-lmtpd)")
        self.folder = folder
        self.mail = folder / "mail"
        self.mail.mkdir(parents=True, exist_ok=True)
        self.pop3 = free_port()
        self.lmtp = free_port()
        root = os.geteuid() == 0
        account = pwd.getpwnam("nobody") if root else pwd.getpwuid(os.geteuid())
        self.owner = (account.pw_uid, account.pw_gid) if root else None
        if root:
            os.chown(self.mail, *self.owner)
            for parent in [self.mail, *self.mail.parents]:
                if not parent.stat().st_mode & 0o001:
                    raise Unavailable(f"{parent} may not be entered by {account.pw_name}: choose --dir elsewhere")
        # A unix socket's path holds 108 octets; a deep folder would not fit.
        self.run = Path(subprocess.check_output(["mktemp", "-d", "/tmp/rpop-bench-XXXXXX"], text=True).strip())
        atexit.register(shutil.rmtree, self.run, True)
        self.run.chmod(0o755)
        unprivileged = "" if root else f"""
default_internal_user = {account.pw_name}
default_internal_group = {account.pw_gid}
default_login_user = {account.pw_name}
service anvil {{ chroot = }}
"""
        config = folder / "dovecot.conf"
        config.write_text(f"""
base_dir = {self.run}/run
state_dir = {self.run}/state
instance_name = rpop-bench
log_path = {folder}/dovecot.log
protocols = pop3 lmtp
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain
mail_location = maildir:~/Maildir
mail_max_userip_connections = 4096
mail_privileged_group =
first_valid_uid = 1
first_valid_gid = 1
default_client_limit = 4096
default_process_limit = 1024
passdb {{
  driver = static
  args = password=secret
}}
userdb {{
  driver = static
  args = uid={account.pw_uid} gid={account.pw_gid} home={self.mail}/%n allow_all_users=yes
}}
service pop3-login {{
  {"" if root else "chroot ="}
  service_count = 0
  process_min_avail = 2
  inet_listener pop3 {{
    port = {self.pop3}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service lmtp {{
  process_min_avail = 1
  inet_listener lmtp {{
    port = {self.lmtp}
  }}
}}
{unprivileged}
""")
        for part in ("run", "state"):
            (self.run / part).mkdir()
            (self.run / part).chmod(0o755)
        log = folder / "dovecot.start"
        with open(log, "w") as out:
            process = children.start(["dovecot", "-F", "-c", config], stdout=out, stderr=out)
        wait_port(self.pop3, process, log)
        wait_port(self.lmtp, process, log)


class Sink:
    """Our own sink: SMTP and LMTP, each with and without CHUNKING."""

    def __init__(self, children, driver, log):
        self.smtp, self.smtp_chunking, self.smtp_quick, self.lmtp, self.lmtp_chunking, control = (
            free_port() for _ in range(6)
        )
        with open(log, "w") as out:
            children.start(
                [
                    driver, "sink", "--control", f"127.0.0.1:{control}",
                    "--listen", f"smtp=127.0.0.1:{self.smtp}",
                    "--listen", f"smtp=127.0.0.1:{self.smtp_chunking},chunking",
                    "--listen", f"smtp=127.0.0.1:{self.smtp_quick},quickack",
                    "--listen", f"lmtp=127.0.0.1:{self.lmtp}",
                    "--listen", f"lmtp=127.0.0.1:{self.lmtp_chunking},chunking",
                ],
                stdout=out, stderr=out,
            )
        wait_port(control, log=log)
        self.control = socket.create_connection(("127.0.0.1", control))
        self.answers = self.control.makefile()

    def _ask(self, what):
        self.control.sendall(what + b"\n")
        return json.loads(self.answers.readline())

    def reset(self):
        self._ask(b"RESET")

    def counts(self):
        return self._ask(b"STAT")


class SmtpSink:
    """Postfix's smtp-sink, a sink that is not ours."""

    def __init__(self, children, log):
        tool = shutil.which("smtp-sink") or "/usr/sbin/smtp-sink"
        if not os.path.exists(tool):
            raise Unavailable("smtp-sink is not installed (Debian: postfix)")
        self.port = free_port()
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        with open(log, "w") as out:
            process = children.start([tool, *user, f"127.0.0.1:{self.port}", "1000"], stdout=out, stderr=out)
        wait_port(self.port, process, log)


class Proxy:
    """Delays each direction of every mapped port by half of a round trip."""

    def __init__(self, children, driver, round_trip_ms, ports, log):
        self.ports = {port: free_port() for port in ports}
        maps = []
        for port, listen in self.ports.items():
            maps += ["--map", f"127.0.0.1:{listen}=127.0.0.1:{port}"]
        with open(log, "w") as out:
            process = children.start(
                [driver, "proxy", "--delay-us", round_trip_ms * 500, *maps], stdout=out, stderr=out
            )
        for listen in self.ports.values():
            wait_port(listen, process, log)

    def __getitem__(self, port):
        return self.ports[port]


class Silent:
    """Servers on 127.77.0.1 and following that accept and say nothing."""

    def __init__(self, children, driver, count, log):
        self.port = free_port()
        with open(log, "w") as out:
            process = children.start(
                [driver, "silent", "--port", self.port, "--count", count], stdout=out, stderr=out
            )
        end = time.monotonic() + 10
        while "ready" not in Path(log).read_text():
            if process.poll() is not None or time.monotonic() > end:
                raise Unavailable("the silent servers do not start: " + Path(log).read_text())
            time.sleep(0.02)
        self.hosts = [f"127.77.{(i + 1) >> 8}.{(i + 1) & 255}" for i in range(count)]
