# What a user types. Every recipe is one line; logic stands in app/ and deploy/, with tests.
# Knobs: BROKER=embedded|rabbitmq|rabbitmq-cluster|redis  POOL=prefork|eventlet|gevent|threads|solo  BACKEND=redis|rpc  SCALE=1
# A codebase of your own: APP=shop.celery:app  SOURCE=../shop  REQUIREMENTS=../shop/requirements.txt  QUEUES=shop,payments
# JSON=1 with a command that shows something: one JSON document on standard output (docs/json.md).
# CELERY=5.6|5.5 takes another Celery than the locked one, with an environment and images of its own.
VENV = .venv$(if $(filter 5.5 5.6,$(CELERY)),-$(CELERY))
# What is typed reaches the commands as it is: `$(…)` in it is not run.
$(foreach one,$(.VARIABLES),$(if $(filter command,$(origin $(one))),$(eval override $(one) := $$(value $(one)))$(eval export $(one))))
KIT = $(VENV)/bin/python -m celery_kit.operate.cli
PYTEST = $(VENV)/bin/pytest
BUILD = $(if $(IMAGES_MADE),:,$(KIT) images)

.DEFAULT_GOAL := help
# What is typed, and what that needs, is never a file, whatever the folder holds.
CHECKS = lint test-unit
TESTS = test-compat test-examples test-security test-cost test-browser test-matrix test-faults test-deploy
.PHONY: help env down fetch checks $(CHECKS) $(TESTS) $(MAKECMDGOALS)
.SILENT:

help:         ## the commands of this file
	while IFS= read -r line; do case $$line in [a-z]*:*'## '*) printf '  make %-15s %s\n' "$${line%%:*}" "$${line#*## }";; esac; done < Makefile

demo: env     ## real work on an embedded broker, no Docker; POOL= works here too
	$(KIT) demo

up: env       ## start a stack: BROKER= POOL= BACKEND= SCALE= BEATS= MONITOR=1 SECURE=1; of your own code: APP= SOURCE= REQUIREMENTS=
	$(KIT) up

down: env     ## stop the stack; VOLUMES=1 deletes its data too, in a terminal once you agree (YES=1)
	$(KIT) down

send: env     ## send a task: TASK=mail.send_email ARGS='["a@b.c", "hi"]' [KWARGS='{}'] [WAIT=10]
	$(KIT) send

forward: env  ## send what waits in the spool, once the broker is back (SPOOL=)
	$(KIT) forward

result: env   ## a task's state and result: ID= [WAIT=10] [WATCH=1] [FORGET=1]
	$(KIT) result

status: env   ## broker, queues, workers and beat of the running stack
	$(KIT) status

certificates: env ## of stacks with SECURE=1; RENEW=1: new ones now, also on running servers; RENEW=ca: of a new authority
	$(KIT) certificates

passwords: env ## of the running stack's servers: RENEW=1: new ones beside the former; RENEW=end: the former end
	$(KIT) passwords

urls: env     ## the servers' addresses for programs of this machine, with their passwords; ROLE=producer|worker|beat|monitor|operator|admin
	$(KIT) urls

top: env      ## the same, live; EVERY=2 seconds
	$(KIT) top

balance: env  ## keep each worker group between its min and max workers, by how long its tasks wait; EVERY=5 COOLDOWN=60 seconds
	$(KIT) balance

pause: env    ## have no worker begin tasks of QUEUE=mail[,load], or of the queues of GROUP=load, until they are resumed; survives restarts
	$(KIT) pause

resume: env   ## have workers consume a paused QUEUE=mail[,load] again, or those of GROUP=load
	$(KIT) resume

dead: env     ## failed tasks and dead letters: RETRY=ID|all sends back, DROP=ID|all deletes; TASK= KIND= SINCE= REASON= ID=
	$(KIT) dead

migrate: env  ## another broker takes over, with the tasks that wait: FROM=redis TO=rabbitmq, or two URLs; again goes on, the other way round goes back
	$(KIT) migrate

dev: env      ## a worker on this machine, on the running stack, that restarts when code changes: app/, or SOURCE
	$(KIT) dev

doctor: env   ## what is wrong with this machine and the running stack, and how to fix it
	$(KIT) doctor

logs: env     ## the running stack's logs; FOLLOW=1 follows them, GROUP= shows one worker group's
	$(KIT) logs

ps: env       ## the running stack's containers or processes
	$(KIT) ps

plan: env     ## workers, cores, memory and disk that tasks need: RATE= SECONDS_PER_TASK= PAYLOAD= [CPU_PER_TASK= WAIT_P95= BROKER= POOL= CORES= OUTAGE=]
	$(KIT) plan

backup: env   ## what the running stack's servers hold, in a file: OUT=; STOP=1 stops the broker for it, as RabbitMQ needs
	$(KIT) backup

restore: env  ## the same in a stack that is down: FILE= [YES=1, in the place of data that is there]
	$(KIT) restore

images: env   ## build the worker images, one tag a pool: POOL= PYTHON=; of your own code: APP= SOURCE= REQUIREMENTS=
	$(KIT) images

push: env     ## build the images and push them: REGISTRY=host/name [TAG=1.4] [PLATFORMS=linux/amd64,linux/arm64]; writes pins.json
	$(KIT) push

contract: env ## can workers of this code and of a git ref run each other's messages? BASE=origin/main [WORKERS_FIRST=1]; APP= SOURCE=
	$(KIT) contract

stack: env    ## start or update a stack on this engine's Docker Swarm: BROKER= PINS=pins.json POOL= BACKEND= SCALE= MONITOR=1 SECURE=1 STACK=name; RENEW=1: new passwords; LOOK=1 shows what runs; DOWN=1 takes it down
	$(KIT) stack

k8s: env      ## a folder for kubectl apply -k: BROKER= POOL= BACKEND= MONITOR=1 SECURE=1 AUTOSCALE=1 NAMESPACE= REGISTRY= TAG= PINS= OUT=
	$(KIT) k8s

k8s-secrets: env ## the Secrets that it names, with new passwords: make k8s-secrets NAMESPACE= SECURE=1 | kubectl create -f -
	$(KIT) k8s-secrets

k8s-check:    ## what the folder renders, without a cluster: schemas of Kubernetes and the operators, named rules; OUT=
	deploy/env.sh dev && deploy/kubectl.sh && $(KIT) k8s-check

engine:       ## a Docker engine, where none answers (root, Debian or Ubuntu)
	deploy/engine/start.sh

env:
	deploy/env.sh local

test: export QUICK = 1
test: export IMAGES_MADE = 1
test:         ## from a bare machine: the matrix on 5 of 20, faults on 2 of 10; more: test-*
	deploy/env.sh dev && rm -f .kit/stages && $(MAKE) --no-print-directory -j2 fetch checks && deploy/stages.sh $(TESTS) && cat .kit/stages

# What stages of `make test` need, made while others run that need none of it.
fetch:
	deploy/stages.sh fetch-images && deploy/env.sh audit && deploy/browser.sh

fetch-images:
	BROKER= POOL= COMPOSE_PROFILES=monitor $(KIT) images

checks:
	deploy/stages.sh $(CHECKS)

lint:         ## style, types, shell scripts, Dockerfiles
	deploy/env.sh dev && deploy/lint.sh

test-unit:    ## tests that need no container
	deploy/env.sh dev && deploy/kubectl.sh && $(PYTEST) tests/unit -n 2 --dist loadfile --no-loadscope-reorder

test-cost:    ## what a task costs on each broker and pool: frames, round trips, calls of sockets and files, bytes of log
	deploy/env.sh dev && $(BUILD) && $(PYTEST) tests/engine/rabbitmq/test_cost.py $(if $(QUICK),,tests/unit/brokers/redis/test_round_trips.py)

test-compat:  ## the kit on either engine beside plain Celery, on each broker and pool: what Celery gives, the kit gives; BROKER= POOL=
	deploy/env.sh dev && $(BUILD) && $(PYTEST) tests/compat -n 3 --no-loadscope-reorder --reruns 2

test-security: ## what must not be possible, on running stacks; hostile messages, on each broker, pool and engine; FUZZED=1: those of test-fuzz
	deploy/env.sh dev && deploy/env.sh audit && BROKER= POOL= $(BUILD) && $(PYTEST) tests/security -n 4 --no-loadscope-reorder -q --no-header

test-fuzz:    ## what decides about a message, by a coverage-guided fuzzer, BROKER= SECONDS=600 each; writes docs/reports/fuzz.md
	deploy/env.sh dev && .venv/bin/python -m tests.fuzz.run

test-hostile: ## some hostile messages on the kit and on plain Celery, prefork and solo; writes docs/reports/hostile.md (BROKER= POOL=)
	deploy/env.sh dev && BROKER= POOL= $(BUILD) && .venv/bin/python -m tests.security.beside

test-checks:  ## what must not be possible, tried on the kit, on plain Celery in compose, and with weaknesses planted; writes docs/reports/checks.md (BROKER= ONLY= SIDES=kit|plain)
	deploy/env.sh dev && BROKER= POOL= $(BUILD) && .venv/bin/python -m tests.security.checks

test-packages: ## Sentry, OpenTelemetry, Django, celery-batches … on the kit, beside plain Celery (minutes)
	deploy/env.sh dev && $(BUILD) && $(PYTEST) tests/packages

test-layers:  ## two builds of an image from nothing: the same layers; writes docs/reports/layers.md (minutes; POOL=)
	deploy/env.sh dev && .venv/bin/python -m deploy.supply.twice

test-operator: ## logs, progress, doctor, traces, make dev: workers of every pool on this machine
	deploy/env.sh dev && $(PYTEST) tests/operator

test-producer: ## a producer whose broker is away, the spool, batches that are cut, on real servers that stop
	deploy/env.sh dev && $(BUILD) && $(PYTEST) tests/producer

test-monitor: ## MONITOR=1: Flower in a browser, metrics, alerts by rule and in life
	deploy/env.sh dev && deploy/browser.sh && $(BUILD) && $(PYTEST) tests/deploy/test_monitor.py

test-matrix:  ## every row on every combination: BROKER= POOL= BACKEND= choose some, CELERY=5.6|5.5 an earlier Celery, SIGNED=1 signs messages; with APP= SOURCE= a stack of each with your code: TASK= ARGS=
	deploy/env.sh dev && $(BUILD) && $(PYTEST) $(if $(APP),tests/deploy/test_codebase.py -k each,tests/integration -n 10 --reruns 2) -q --no-header

test-faults:  ## each fault on every broker and pool, and on plain Celery; writes docs/reports/faults.* (hours; QUICK=1: minutes)
	deploy/env.sh dev && $(BUILD) && .venv/bin/python -m tests.faults.run

test-clusters: ## lose the node that leads the queues, killed, frozen or cut off, under load, on every pool, and on plain Celery; writes docs/reports/clusters.md (BROKER= POOL= FAULT= SIDES=kit|plain)
	deploy/env.sh dev && POOL= $(KIT) images && .venv/bin/python -m tests.clusters.run

test-crash:   ## workers that are killed during quick tasks, beside plain Celery; writes docs/reports/crash.md (long; PART= BROKER= POOL= ENGINE=)
	deploy/env.sh dev && .venv/bin/python -m tests.crash.run

test-beats:   ## two and three beats, of which one leads, that are killed, frozen, cut off, and whose clocks are set; writes docs/reports/beats.md (20 minutes; BROKER= BEATS= FAULTS=20)
	deploy/env.sh dev && BROKER= POOL= BEATS= $(KIT) images && .venv/bin/python -m tests.beats.run
test-migrate: ## moves between brokers under load, killed at each point, rolled back; writes docs/reports/migrate.md (an hour; QUICK=1 ONLY=load|points|plain)
	deploy/env.sh dev && .venv/bin/python -m tests.migrate.run

test-shutdown: ## a worker that is asked to stop, on every broker and pool
	deploy/env.sh dev && $(BUILD) && $(PYTEST) tests/faults/test_shutdown.py -n 4 -q --no-header

test-engine:  ## ENGINE=fast on real servers: workers that are killed and stopped, transports, result backend
	deploy/env.sh dev && $(BUILD) && $(PYTEST) tests/engine

test-limits:  ## that each row of a limit is needed exactly where it stands: each is inverted, and its test must fail
	deploy/env.sh dev && $(BUILD) && INVERT_LIMITS=1 $(PYTEST) tests/integration -n 10 -q --no-header -rfX

test-examples: ## the wheel in an empty environment: each of examples/ on each broker and two pools; QUICK=1: one combination each
	deploy/env.sh dev && $(PYTEST) tests/examples -n 3 -q --no-header

test-upstream: ## Celery's own integration suite with the kit installed in its app, beside plain Celery; writes docs/reports/upstream.md (hours; KIT=1: the default engine alone; PAIRS= WORKERS= SIDES= MODULES=)
	deploy/env.sh dev && $(BUILD) && .venv/bin/python -m tests.upstream.run

test-browser: ## the pages that the kit makes, in a real browser
	deploy/env.sh dev && deploy/browser.sh && $(PYTEST) tests/browser

test-deploy:  ## the commands of this file, as a user types them; QUICK=1: each case once, not on every broker
	deploy/env.sh dev && $(PYTEST) tests/deploy -n 4 --no-loadscope-reorder --reruns 2 --ignore tests/deploy/test_monitor.py

test-autoscale: ## a load step on what make k8s AUTOSCALE=1 renders: its questions, asked of a real Prometheus, and the autoscaler's arithmetic (minutes)
	deploy/env.sh dev && deploy/kubectl.sh && POOL= COMPOSE_PROFILES=monitor $(KIT) images && $(PYTEST) tests/autoscale -q --no-header -s

test-swarm:   ## make stack on three nodes, engines in containers: a node is killed, images are replaced under load, one is broken (minutes)
	deploy/env.sh dev && POOL= $(KIT) images && $(PYTEST) tests/swarm -q --no-header

bench:        ## each pool and engine beside plain Celery and peers; QUICK=1: 3 minutes; ONLY= ROUNDS= COMPARE=reports/bench.json
	deploy/env.sh dev && BROKER= POOL= COMPOSE_PROFILES=monitor $(KIT) images && .venv/bin/python -m bench

test-plan:    ## what make plan says of three loads, and what then happens; writes docs/reports/plan.md (minutes; ROUNDS= SECONDS= FIGURES=)
	deploy/env.sh dev && BROKER= POOL= $(KIT) images && .venv/bin/python -m bench.planned

test-backup:  ## make backup and make restore on each broker
	deploy/env.sh dev && $(PYTEST) tests/deploy/test_backup.py

sbom:         ## what each image holds, as an SBOM (CycloneDX) and a licence list, in supply/; POOL= chooses one: a pool, mail, monitor
	deploy/env.sh dev && .venv/bin/python -m deploy.supply sbom

sign:         ## the same, and a signed statement where each image comes from; SIGN_KEY= names a key of your own
	deploy/env.sh dev && .venv/bin/python -m deploy.supply sign

verify:       ## compare each image and its papers in supply/ with what was signed; VERIFY_KEY= names the key
	deploy/env.sh dev && .venv/bin/python -m deploy.supply verify

audit:        ## known vulnerabilities of the locked packages, and updates for the Debian packages of an image
	deploy/env.sh dev && deploy/env.sh audit && .venv/bin/python -m deploy.supply audit

wheel:        ## celery_kit alone as a package, in dist/
	deploy/env.sh dev && .venv/bin/uv build --quiet --wheel --clear --out-dir dist

docs:         ## write the generated tables in README and docs again
	deploy/env.sh dev && .venv/bin/python -m docs.generate

docs-bench:   ## take the last run of bench into the docs, in place of the sections that it has measured: tables, plot
	.venv/bin/python -m docs.take_bench && $(MAKE) docs

docs-soak:    ## take the last `make bench ONLY=lasting` into docs/reports/soak.md
	cp reports/bench.md docs/reports/soak.md

docs-matrix:  ## take the last run of test-matrix into the docs: tables, page, screenshot
	.venv/bin/python -m docs.take_matrix && deploy/browser.sh && SCREENSHOT=1 $(PYTEST) tests/browser && $(MAKE) docs

docs-probe:   ## what a health probe says and costs in a worker's container; writes docs/reports/probe.md
	deploy/env.sh dev && $(BUILD) && .venv/bin/python -m docs.probe

docs-site:    ## README and docs as a site, in site/
	deploy/env.sh docs && .venv/bin/sphinx-build --quiet --nitpicky --fail-on-warning --keep-going -c docs . site && echo site/index.html

lock: env     ## pin every requirement again, with hashes
	deploy/lock.sh

clean: override export BROKER =
clean: down   ## what was made here: the environment, the embedded broker's data
	rm -rf .venv .venv-* .kit site supply .mypy_cache .ruff_cache .pytest_cache reports dist
