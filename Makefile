# "make help" says what there is. Go does the building; make is here so that each
# thing a person wants is one word.

GO        ?= go
TESTFLAGS ?=
PACKAGES  ?= ./...

.DEFAULT_GOAL := help
.PHONY: help build servers demo test check bench clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/    make \1\t\2/p' Makefile | expand -t 20

build: ## the program: ./rideau
	$(GO) build -trimpath -o rideau ./cmd/rideau

servers: ## PostgreSQL 13 to 18, in .servers; at once when they are there
	@scripts/servers

demo: servers build ## a primary, a relay, two standbys; the primary is killed, nothing is lost
	./rideau demo

# The race detector needs a C compiler; scripts/race sees to that. A test waits
# for real servers, on a machine that may have two processors.
#
# Vet is told of it too, so that everything is compiled once.
#
# Left to itself, whatever was built with the detector sleeps for a second before it
# exits, in case another thread has a race to tell of: a fifth of the whole time.
test: export GORACE ?= atexit_sleep_ms=0
test: servers ## all tests, against real servers, with the race detector
	race=$$(scripts/race) && $(GO) vet $$race ./... && \
	$(GO) test $$race -timeout 30m $(TESTFLAGS) $(PACKAGES)

check: ## what needs no server: gofmt, vet, staticcheck, the rules of the house
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "gofmt would change:"; echo "$$files"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test -count=1 .

bench: servers build ## side by side with PostgreSQL's own tools and standbys
	$(GO) run ./bench $(BENCHFLAGS)

clean: ## what make has made here; servers stay in their cache
	rm -rf rideau bench/out .servers
