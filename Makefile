# SPDX-License-Identifier: LGPL-2.1-or-later
# The two commands: `make run` boots a real guest, `make check` tests. Meson builds; this is the front door.
BUILD ?= build
MESON_FLAGS ?=
PREFIX ?= /usr/local
JOBS := $(shell nproc)

.PHONY: all deps configure run check check-long lockstep bench fuzz style install clean kvm-unit-tests

all: configure
	@ninja -C $(BUILD) -j $(JOBS)
	@mkdir -p $(BUILD)/bin
	@for p in lodge lodge-vmm lodge-img; do ln -sfn ../src/bin/$$p $(BUILD)/bin/$$p; done

configure: deps
	@test -f $(BUILD)/build.ninja || meson setup $(BUILD) --prefix $(PREFIX) -Dwerror=true $(MESON_FLAGS)

deps:
	@scripts/install-deps build

run:
	@scripts/install-deps build run
	@$(MAKE) --no-print-directory all
	@scripts/first-boot

check:
	@scripts/install-deps build run check
	@scripts/check

check-long:
	@scripts/install-deps build run check
	@scripts/check --long

# The translator beside the interpreter after every block: the small images, and Debian's kernel to init (minutes).
lockstep:
	@scripts/install-deps build run check
	@$(MAKE) --no-print-directory all
	@LODGE_CHECK_LONG=1 meson test -C $(BUILD) --no-rebuild -t 20 --print-errorlogs --suite lockstep

bench:
	@scripts/install-deps build run check
	@$(MAKE) --no-print-directory all
	@bench/all

fuzz:
	@scripts/install-deps build check
	@scripts/fuzz

# A tree of the public kvm-unit-tests, configured for x86_64 and made: make kvm-unit-tests DIR=...
kvm-unit-tests: all
	@scripts/kvm-unit-tests "$(DIR)" --expect docs/kvm-unit-tests.md

style:
	@scripts/check-layers && scripts/check-style

install: all
	@meson install -C $(BUILD) --no-rebuild

clean:
	rm -rf $(BUILD)
