# The front door: `make help` lists what can be asked for.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
TARGET := x86_64-unknown-linux-gnu
# Built with the whole workspace, never alone: another set of features would compile half the tree again.
IMAGE := target/$(TARGET)/release/image
# Where downloads and unpacked packages are kept.
export LQX_CACHE ?= $(CURDIR)/.cache

PACKAGES := apt build-essential busybox-static cmake cpio dnsmasq-base dosfstools dpkg e2fsprogs gdisk git iproute2 kmod lz4 mtools ovmf qemu-system-x86 qemu-utils util-linux xorriso xz-utils zstd

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

.PHONY: deps
deps: ## Install the Debian packages that building and testing need (as root; else prints the command)
	@missing=(); for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing+=($$p); done; \
	if [ $${#missing[@]} = 0 ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$${missing[@]}"; \
	else echo "Run this first:"; echo "  sudo apt-get install -y --no-install-recommends $${missing[*]}"; exit 1; fi

.PHONY: binaries
binaries: ## Build hostd, init, lqx and our tools
	$(CARGO) build --release --locked --workspace --bins

.PHONY: guest
guest: binaries ## Make the demonstration guest: dist/guest/
	$(IMAGE) guest

.PHONY: rootfs
rootfs: binaries ## Make kernel and initramfs for direct boots: dist/vmlinux, dist/initrd.lz4
	$(IMAGE) rootfs

.PHONY: uki
uki: binaries ## Make the operating system in one file: dist/limiquantix.efi
	$(IMAGE) uki

.PHONY: iso
iso: binaries ## Make the installer medium: dist/limiquantix.iso
	$(IMAGE) iso

.PHONY: disk
disk: binaries ## Make an installed disk: dist/limiquantix.raw (8 GiB, sparse)
	$(IMAGE) disk

.PHONY: pxe
pxe: binaries ## Make the files for network boot: dist/pxe/
	$(IMAGE) pxe

.PHONY: images
images: binaries ## Make all of these and the demonstration guest, and dist/manifest.json
	$(IMAGE) all

.PHONY: base-update
base-update: binaries ## Pin the current versions of the Debian base in image/base/debian.lock
	$(IMAGE) base-update

TESTBED := target/$(TARGET)/release/testbed

.PHONY: run
run: deps images ## Install the ISO in QEMU, boot from its disk, start a guest; stays until Ctrl-C (HEADLESS=1: ends after the guest's marker)
	$(TESTBED) run $(if $(filter 1,$(HEADLESS)),--headless)

.PHONY: test
test: deps images ## Run all tests: unit, KVM, whole appliances; the last line has the totals
	$(TESTBED) test

.PHONY: quick
quick: ## Run the tests that need neither KVM nor QEMU nor root
	$(CARGO) build --quiet --locked --workspace --bin testbed
	target/$(TARGET)/debug/testbed test unit

.PHONY: check
check: ## Format, lints, licences and bans, stale generated files: no network, no lab
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test --quiet --workspace --locked --test tidy --test openapi

.PHONY: verify
verify: ## Exactly what has to hold before anything lands
	.ci/run

.PHONY: test-kvm
test-kvm: deps images ## Run the tests that need /dev/kvm, in a guest that has it
	$(TESTBED) test kvm

.PHONY: qemu
qemu: PACKAGES += build-essential libattr1-dev libcap-ng-dev libfdt-dev libglib2.0-dev libpixman-1-dev libslirp-dev meson ninja-build patch pkg-config python3-venv xz-utils
qemu: deps binaries ## Build the QEMU with which test-kvm and testbed can run UEFI guests where they have to emulate (once, minutes)
	$(TESTBED) qemu

.PHONY: fuzz-smoke
fuzz-smoke: ## Feed everything a guest controls with nonsense, SECONDS (20) for each target; a failure prints its seed
	LQX_FUZZ_SECONDS=$(or $(SECONDS),20) $(CARGO) test --workspace --locked --lib fuzz::fuzz_ -- --nocapture

.PHONY: testbed
testbed: deps images ## Run the tests of whole appliances (ONLY=part of a test's name)
	$(TESTBED) test testbed $(if $(ONLY),--only $(ONLY))

.PHONY: bench
bench: deps images ## Measure the figures and compare them with their limits; raw samples in target/bench/
	$(TESTBED) bench
