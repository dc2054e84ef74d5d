# Everything is built with one profile (release): RocksDB compiles once, about 12 minutes on two cores.
.DEFAULT_GOAL := help
.PHONY: help run test lint sim bsim fuzz bench benchbackend inspect soak suites compat clean
CARGO := cargo
ARGS ?=

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | column -t -s '|'

run: ## serve a vDisk from ./run and say how to attach a VM to it (DISK=name SIZE=16GiB)
	@volumedriver/run

test: ## install what the tests need, lint, run every test, count them
	@tests/setup test
	@tests/run

lint: ## formatting, clippy, and who may import whom
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	$(CARGO) test --release --workspace --test tidy

sim: ## the engine in the simulated world (SEED=… reproduces one run; SEEDS=… STEPS=…; ARGS=… as `sim --help` says)
	$(CARGO) run --release --workspace --bin sim -- $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(STEPS),--steps $(STEPS)) $(ARGS)

bsim: ## the whole backend in its simulated world (SEED=… reproduces one run; SEEDS=… STEPS=…; ARGS=… as `bsim --help` says)
	$(CARGO) run --release --workspace --bin bsim -- $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(STEPS),--steps $(STEPS)) $(ARGS)

fuzz: ## every decoder of outside bytes, under libFuzzer (TARGET=… SECONDS=60)
	@fuzz/run $(or $(TARGET),all) $(or $(SECONDS),60)

bench: ## ours beside nbdkit and qemu-nbd: a table with ratios, also in bench-results/ (ARGS=--quick)
	@tests/setup test
	$(CARGO) build --release --workspace --bins
	@benches/device $(ARGS)

benchbackend: ## the object backend beside S3 servers, bare sockets, and itself damaged (ARGS="--quick --only stores")
	@tests/setup test
	$(CARGO) build --release --workspace --bins
	@benches/backend $(ARGS)

inspect: ## decode stored files and objects (ARGS="sco FILE", …)
	@$(CARGO) run --quiet --release --workspace --bin volumedriver -- inspect $(ARGS)

soak: ## the long versions: 1,000 kill -9 rounds, nbdcopy of 4 GiB, a longer VM
	@tests/setup test
	SOAK=1 $(CARGO) test --release --workspace --test clients --test crash --test failures --test vm -- --nocapture

suites: ## qemu's block tests and the reference implementation's NBD tester (their sources come from Debian)
	@tests/setup test
	$(CARGO) build --release --workspace --bins
	@tests/suites/run
compat: ## what S3 servers truly do, as a table (ARGS="moto s3s-fs garage"; garage takes about 14 minutes to build)
	@tests/compat $(ARGS)

clean: ## remove what was built (RocksDB too) and ./run
	$(CARGO) clean
	rm -rf run
