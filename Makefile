# Vitrine. `make help` says what each target does.
GO      ?= go
BIN     := bin
PREFIX  ?= /usr/local
FUZZTIME ?= 20s
CNI     := v1.9.1
DEBIAN  ?= 13
VM      := $(BIN)/dev/vm -debian $(DEBIAN)
LINTER  := v2.15.0
KUBELET := v1.37.2
CACHE   := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vitrine
TAGS    := osusergo netgo containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper nri_no_wasm
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
ENTRY   := github.com/vitrine-runtime/vitrine/internal/early.entry
FLAGS   := -trimpath -buildvcs=false -tags "$(TAGS)"
# Inlining costs the small binary 110 KB, and saves nothing that can be measured; the Go runtime and what it stands on keep it.
SMALL   := $(foreach p,github.com/vitrine-runtime/vitrine/... golang.org/x/sys/... os fmt time reflect strconv,-gcflags=$(p)=-l)
STATIC  := CGO_ENABLED=0 $(GO) build $(FLAGS)

.DEFAULT_GOAL := all
.PHONY: all build cni-plugins try test race crowd fuzz lint bench bench-cri bench-stats bench-image bench-oci conformance install clean deps help

all: build cni-plugins ## build all that is shipped and all that is needed to try it

build: ## the two static binaries, bin/vitrine and bin/vitrine-oci
	$(STATIC) -ldflags "-s -w -X main.version=$(VERSION)" -o $(BIN)/ ./cmd/vitrine
	$(STATIC) $(SMALL) -ldflags "-s -w -X main.version=$(VERSION) -E $(ENTRY)" -o $(BIN)/ ./cmd/vitrine-oci

cni-plugins: ## the network plugins of containernetworking $(CNI), into bin/cni
	cd contrib/cni && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags "-s -w -X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=$(CNI)" -o ../../$(BIN)/cni/ tool

try: deps build cni-plugins ## run a real pod in private surroundings, show it, remove it (root)
	@$(STATIC) -o $(BIN)/dev/ ./conformance/try && $(BIN)/dev/try

test: deps build cni-plugins bound ## all tests; those that need root say so where they are not root
	@$(STATIC) -o $(BIN)/dev/ ./conformance/tally && CGO_ENABLED=0 $(BIN)/dev/tally -tags "$(TAGS)" ./...

race: deps build cni-plugins bound ## all tests under the race detector (needs gcc)
	@$(STATIC) -o $(BIN)/dev/ ./conformance/tally && CGO_ENABLED=1 GLIBC_TUNABLES=glibc.pthread.rseq=0 $(BIN)/dev/tally -race -tags "$(TAGS)" ./...

crowd: deps build cni-plugins ## 64 clients at once against a daemon with the race detector, for CROWD seconds (root; needs gcc)
	CGO_ENABLED=1 $(GO) build -race -trimpath -buildvcs=false -tags "$(TAGS)" -o $(BIN)/dev/vitrine-race ./cmd/vitrine
	VITRINE_RACE=$(CURDIR)/$(BIN)/dev/vitrine-race VITRINE_CROWD=$(or $(CROWD),60) CGO_ENABLED=0 $(GO) test -tags "$(TAGS)" -count=1 -timeout 30m -run '^TestCrowd$$' -v ./conformance/integration/

fuzz: ## each fuzz target for FUZZTIME
	@grep -rno '^func Fuzz[A-Za-z0-9_]*' --include=*_test.go . | sed 's/:[0-9]*:func / /' | while read -r file name; do \
	  $(GO) test -tags "$(TAGS)" -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) "$$(dirname $$file)" || exit 1; done

lint: $(BIN)/dev/golangci-lint ## go vet and golangci-lint with .golangci.yml
	CGO_ENABLED=0 $(GO) vet -tags "$(TAGS)" ./...
	CGO_ENABLED=0 $(BIN)/dev/golangci-lint run --allow-parallel-runners ./...

$(BIN)/dev/golangci-lint:
	GOBIN=$(CURDIR)/$(BIN)/dev CGO_ENABLED=0 $(GO) install -trimpath -ldflags "-s -w" github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINTER)

bench: deps build cni-plugins ## start of a container beside crun, interleaved (root)
	@contrib/deps crun && $(STATIC) -o $(BIN)/dev/ ./conformance/bench && $(BIN)/dev/bench

bench-stats: deps build cni-plugins $(BIN)/dev/nolimits ## statistics of 100 containers (root); CONTAINERD=DIR of containerd 2 and its shim measures it beside, with CRUN=
	@$(STATIC) -o $(BIN)/dev/ ./conformance/bench && $(BIN)/dev/bench $(if $(CONTAINERD),-containerd $(CONTAINERD)) $(if $(CRUN),-crun $(CRUN)) stats

bench-cri: deps build cni-plugins $(BIN)/dev/nolimits ## lives of pods and statistics of 100 by the CRI, beside CONTAINERD=DIR of containerd 2 with CRUN=, and the distribution's where it is installed (root); ROUNDS= how often
	@$(STATIC) -o $(BIN)/dev/ ./conformance/bench && $(BIN)/dev/bench -rounds $(or $(ROUNDS),100) $(if $(CONTAINERD),-containerd $(CONTAINERD)) $(if $(CRUN),-crun $(CRUN)) cri

bench-image: deps build cni-plugins $(BIN)/dev/nolimits ## pulls beside containerd and skopeo, and container roots beside bare mounts (root); CONTAINERD=DIR of containerd 2, ROUNDS= how often
	@contrib/deps skopeo && $(STATIC) -o $(BIN)/dev/ ./conformance/bench && $(BIN)/dev/bench -rounds $(or $(ROUNDS),5) $(if $(CONTAINERD),-containerd $(CONTAINERD)) image

bench-oci: deps build bound $(BIN)/dev/oracle ## containers and execs beside a C program with the same system calls, crun and runc, interleaved (root); CRUN= measures a crun of your own, ROUNDS= how often
	@$(STATIC) -o $(BIN)/dev/bench-oci ./conformance/bench/oci && $(BIN)/dev/bench-oci -oracle $(BIN)/dev/oracle $(if $(CRUN),-crun $(CRUN)) $(if $(ROUNDS),-rounds $(ROUNDS))

# Asks libseccomp for its filters, which ours are held against.
$(BIN)/dev/oracle: oci/seccomp/testdata/oracle.c
	@contrib/deps gcc libc6-dev libseccomp-dev && mkdir -p $(@D) && gcc -O1 -o $@ $< -lseccomp

conformance: deps build cni-plugins ## the integration tests alone, against the real daemon (root)
	CGO_ENABLED=0 $(GO) test -tags "$(TAGS)" -count=1 -v ./conformance/integration/

vm: vm-tools ## the root of a virtual machine with Debian $(DEBIAN), from its packages, cached (root)
	@$(VM) build

vm-test: vm-tools build cni-plugins ## tests as root in the virtual machine: RUN= and PKG= select; see `bin/dev/vm` for up, down, reboot, powercut
	@$(VM) -run '$(RUN)' test $(PKG)

vm-short: vm-tools build cni-plugins ## what the build machine runs of that, 15 minutes from nothing
	@$(VM) -nice 1 -timeout 19m30s -set short test

vm-oci: vm-tools build ## Debian's podman and containerd with vitrine-oci as their runtime, in a virtual machine of its own
	@vm="$(VM) -with podman,conmon,containerd,netavark,aardvark-dns -idle 5m"; $$vm up && { $$vm put /root/show $(BIN)/vitrine-oci conformance/vm/oci/show.sh && $$vm run bash /root/show/show.sh; code=$$?; $$vm down; exit $$code; }

vm-stats: vm-tools build cni-plugins ## statistics of 100 containers in the virtual machine, a report: the limits and their files are there
	@$(STATIC) -ldflags "-s -w" -o $(BIN)/dev/ ./conformance/bench && vm="$(VM) -name stats -idle 5m" && at=/root/stats/bin && \
	  $$vm up && { $$vm put $$at $(BIN)/vitrine $(BIN)/vitrine-oci $(BIN)/dev/bench && $$vm put $$at/cni $(BIN)/cni/* && \
	  $$vm run env VITRINE_VM=$(DEBIAN) VITRINE_DRIVER=systemd VITRINE_BIN=$$at $$at/bench -rounds 30 stats; code=$$?; $$vm down; exit $$code; }

vm-verbs: vm-tools ## the harness itself: power cut, reboot, clock jump, deadlines, on a machine of its own
	VITRINE_VM_VERBS=1 CGO_ENABLED=0 $(GO) test -tags "$(TAGS)" -count=1 -v -timeout 15m -run TestVerbs ./conformance/vm/

vm-shell: vm-tools ## a shell in the virtual machine, which others may use meanwhile
	@$(VM) shell

vm-kubelet: vm-tools build cni-plugins $(CACHE)/kubelet-$(KUBELET) ## static pods under a real kubelet $(KUBELET) in the virtual machine; building that takes some minutes, once
	@$(STATIC) -ldflags "-s -w" -o $(BIN)/dev/kubelet-walk ./conformance/kubelet && $(BIN)/dev/kubelet-walk -vm "$(VM)" -kubelet $(CACHE)/kubelet-$(KUBELET)

# Its name has the version, so it is built once. One package at a time and nicely: that takes ten minutes of a small machine.
K8S := k8s.io/component-base/version
$(CACHE)/kubelet-$(KUBELET):
	cd conformance/kubelet/tool && CGO_ENABLED=0 nice -n 10 $(GO) build -p 1 -trimpath -buildvcs=false -ldflags "-s -w -X $(K8S).gitVersion=$(KUBELET) -X $(K8S).gitMajor=1 -X $(K8S).gitMinor=37 -X $(K8S).gitTreeState=clean" -o $@ k8s.io/kubernetes/cmd/kubelet

.PHONY: vm vm-test vm-shell vm-tools vm-kubelet vm-oci vm-stats
vm-tools: bound
	@$(STATIC) -ldflags "-s -w" -o $(BIN)/dev/ ./conformance/vm ./conformance/vm/agent ./conformance/tally

# A C program that makes a container's system calls and nothing else: what our memory and our time are held against.
bound: $(BIN)/dev/bound
.PHONY: bound
$(BIN)/dev/bound: conformance/bench/bound/bound.c
	@contrib/deps gcc libc6-dev && mkdir -p $(@D) && gcc -static -O2 -Wall -Wextra -Werror -o $@ $<

# Stands before crun where cgroups have no controllers.
$(BIN)/dev/nolimits: conformance/bench/nolimits/nolimits.c
	@contrib/deps gcc libc6-dev && mkdir -p $(@D) && gcc -static -O2 -Wall -Wextra -Werror -o $@ $<

install: build ## both binaries into $(DESTDIR)$(PREFIX)/bin
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin $(BIN)/vitrine $(BIN)/vitrine-oci

clean: ## remove what was built
	rm -rf $(BIN)

deps: ## install what is missing (Debian packages, as root) and say what that was
	@contrib/deps busybox-static docker-registry iptables strace uidmap

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sed 's/$$(CNI)/$(CNI)/; s/$$(KUBELET)/$(KUBELET)/' | while IFS="$$(printf '\t')" read -r t d; do printf '  %-12s %s\n' "$$t" "$$d"; done
