# Everything that this project does, by name. `make help` lists it.
CARGO := scripts/cargo
.DEFAULT_GOAL := help

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: bootstrap ## Shows RPOP at work: private mail servers, several mailboxes, every message proved
	@$(CARGO) build --quiet --bin rpop --example demo || $(CARGO) build --bin rpop --example demo
	@target/debug/examples/demo

# STAY=1 leaves it running until Enter is pressed.
.PHONY: run-cluster
run-cluster: bootstrap ## The operator on a private Kubernetes API server: mail moves, a worker is killed
	@scripts/kubetools >/dev/null
	@$(CARGO) build --quiet --bin rpop --example cluster_demo || $(CARGO) build --bin rpop --example cluster_demo
	@STAY=$(STAY) target/debug/examples/cluster_demo

# TESTFLAGS="name --nocapture" chooses tests; RPOP_BINARY=/path tries another
# build of rpop; RPOP_CHAOS=1000 gives the random tests a night's work. The tests
# on a real API server need etcd, kube-apiserver and the like: found, or built
# once (needs Go; six minutes); without them they are skipped, but never in CI.
.PHONY: test
test: bootstrap ## All tests, with real mail servers and a real API server
	@scripts/kubetools >/dev/null || [ "$$CI" != true ]
	$(CARGO) build --quiet --example demo --bin rpop
	$(CARGO) test --lib --tests --no-fail-fast -- $(TESTFLAGS)

# Ten minutes (RPOP_CHAOS_MINUTES) from a seed that it prints (RPOP_CHAOS_SEED
# to repeat it); RPOP_CHAOS_TIMING=default for the timing that people use.
.PHONY: chaos
chaos: bootstrap ## Workers, leaders, etcd and API server are killed and stopped while mail flows
	@scripts/kubetools >/dev/null
	$(CARGO) test --test chaos -- --ignored --nocapture chaos::long_form

.PHONY: scale
scale: build ## 10 000 records and 10 workers on a real API server: what it costs
	@scripts/kubetools >/dev/null
	RPOP_BINARY=$(CURDIR)/target/release/rpop $(CARGO) test --test chaos -- --ignored --nocapture scale::

.PHONY: lint
lint: bootstrap ## Format, clippy without a warning, licences and sources of dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --all-targets --quiet -- -D warnings
	scripts/deny

.PHONY: bench
bench: ## RPOP beside fetchmail, getmail6 and mpop, and the micro-benchmarks
	scripts/bootstrap bench
	scripts/bench
	$(CARGO) bench --bench pop3_codec --bench ledger --bench planner

# Ten minutes each, or FUZZ_SECONDS; scripts/fuzz NAME for one of them.
.PHONY: fuzz
fuzz: bootstrap ## The decoders against random octets: POP3, SMTP, dot-stuffing
	scripts/fuzz

# Needs Node.js and npm; not part of `make test` for the sake of those without.
.PHONY: oauth
oauth: bootstrap ## Sign-in and mail with a real OAuth 2.0 provider (oidc-provider)
	npm ci --prefix tests/support/oidc --no-audit --no-fund --ignore-scripts
	$(CARGO) test --test it -- --ignored a_person_signs_in_at_a_real_provider

.PHONY: build
build: bootstrap ## The release binary, target/release/rpop
	$(CARGO) build --release --bin rpop

.PHONY: bootstrap
bootstrap: ## Installs what is missing (Debian packages, Rust); says what
	@scripts/bootstrap
