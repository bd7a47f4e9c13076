"""Messages and mailboxes, written as files and restored between runs."""

import os
import shutil
import subprocess
from pathlib import Path

LINE = b"The quick brown fox jumps over the lazy dog, and then it does so once more.\n"
DOTTED = b".a line that begins with a dot, as some do, to have it stuffed on the wire..\n"
MASK = (1 << 64) - 1


def mix(number):
    """SplitMix64, as in the sink: sums of it tell sets of numbers apart."""
    z = (number + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def digest(numbers):
    """What the sink's sum must be when each number came exactly once."""
    total = 0
    for number in numbers:
        total += mix(number)
    return total & MASK


def header(number):
    return (
        b"Return-Path: <sender%d@remote.example>\n"
        b"Received: from a.remote.example (a.remote.example [192.0.2.1])\n"
        b"\tby pop.remote.example with ESMTPS id %010d; Mon, 5 Jan 2026 10:00:00 +0000\n"
        b"X-Bench: %010d\n"
        b"Date: Mon, 5 Jan 2026 10:00:00 +0000\n"
        b"From: Sender <sender%d@remote.example>\n"
        b"To: <user@remote.example>\n"
        b"Message-ID: <%d.bench@remote.example>\n"
        b"Subject: message %d of the benchmark\n"
        b"MIME-Version: 1.0\n"
        b"Content-Type: text/plain; charset=utf-8\n\n"
        % (number, number, number, number, number, number)
    )


def write_message(folder, number, size, extra=b"", copy=0):
    """One message of about `size` octets on the wire, under a Maildir name
    that tells Dovecot its sizes. Seen, so that retrieving it renames nothing.
    `extra` are further header lines; a `copy` differs by its name alone."""
    start = extra + header(number)
    wire_start = len(start) + start.count(b"\n")
    lines = max(1, (size - wire_start) // (len(LINE) + 1))
    dotted = lines // 20
    plain = lines - dotted
    stored = len(start) + plain * len(LINE) + dotted * len(DOTTED)
    wire = stored + start.count(b"\n") + lines
    name = f"{1700000000 + number}.M{number}P{1 + copy}.bench,S={stored},W={wire}:2,S"
    with open(folder / name, "wb", buffering=1 << 20) as file:
        file.write(start)
        block = LINE * 19 + DOTTED
        blocks = min(dotted, plain // 19)
        step = 10_000
        for done in range(0, blocks, step):
            file.write(block * min(step, blocks - done))
        file.write(LINE * (plain - 19 * blocks))
        file.write(DOTTED * (dotted - blocks))


class Discarded:
    """What is no longer needed, moved aside until the end: an ext4 without a
    journal passes over inodes that were freed in the last minutes, one by one,
    whenever a file is made, and every contender would pay for what was deleted
    for the one before it."""

    def __init__(self, root):
        self.root = root
        self.count = 0

    def add(self, path):
        if path.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            self.count += 1
            path.rename(self.root / f"{self.count:06}")


class Mailboxes:
    """The Maildirs of one Dovecot, made from templates that it has indexed."""

    def __init__(self, root, owner, warm, discarded):
        self.root = root
        self.discarded = discarded
        self.owner = owner  # (uid, gid) or None
        self.warm = warm  # retrieves a user's mail once, so that it is indexed
        self.templates = {}

    def template(self, name, count, size, first=1, extra=b"", copies=1):
        """Makes (once) a user `name` with `count` messages, and keeps it."""
        if name in self.templates:
            return
        home = self.root / name
        maildir = home / "Maildir"
        self.discarded.add(home)
        for part in ("cur", "new", "tmp"):
            (maildir / part).mkdir(parents=True)
        for number in range(first, first + count):
            for copy in range(copies):
                write_message(maildir / "cur", number, size, extra, copy)
        self._own(home)
        self.warm(name)
        self.templates[name] = count

    def many(self, prefix, count, size):
        """`count` users of one message each; the first opening indexes them."""
        for index in range(count):
            home = self.root / f"{prefix}{index:05}"
            maildir = home / "Maildir"
            for part in ("cur", "new", "tmp"):
                (maildir / part).mkdir(parents=True)
            write_message(maildir / "cur", index + 1, size)
            self._own(home)

    def restore(self, user, template):
        """Makes `user` equal to the template: messages as hard links, indexes
        as copies, all times kept, so that Dovecot finds what it wrote itself."""
        home = self.root / user
        self.discarded.add(home)
        source = self.root / template / "Maildir"
        target = home / "Maildir"
        target.mkdir(parents=True)
        subprocess.run(["cp", "-al", source / "cur", target], check=True)
        for entry in source.iterdir():
            if entry.name != "cur":
                subprocess.run(["cp", "-a", entry, target], check=True)
        shutil.copystat(source, target)
        self._own_only(home, target)

    def restore_many(self, prefix, kept):
        """Replaces all users `prefix`NNNNN by the copies under `kept`."""
        for path in self.root.glob(prefix + "*"):
            self.discarded.add(path)
        subprocess.run(f"cp -a {kept}/{prefix}* {self.root}/", shell=True, check=True)

    def left(self, user):
        """Messages that are still there."""
        maildir = self.root / user / "Maildir"
        return sum(len(os.listdir(maildir / part)) for part in ("cur", "new"))

    def _own(self, path):
        if self.owner:
            subprocess.run(["chown", "-R", "%d:%d" % self.owner, path], check=True)

    def _own_only(self, *paths):
        if self.owner:
            for path in paths:
                os.chown(path, *self.owner)


def count_maildir(path):
    new = Path(path) / "new"
    return len(os.listdir(new)) if new.exists() else 0
