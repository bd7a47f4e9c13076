"""The benchmark's harness: servers, mailboxes, contenders, scenarios, report."""
