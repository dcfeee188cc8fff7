# What can be done here; `just` alone lists it.

set dotenv-load := false
set positional-arguments := true

uv := env("UV", "uv")
run := uv + " run --group dev --group model"
proto_dir := "proto/recommend-module"
proto_file := "recommend_api/v1/recommend_api.proto"

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

# Every check that is not a test
[group('check')]
check: lint types imports proto-lint proto-check docs-check

# Mend what the checkers can mend themselves, and write what is generated
[group('check')]
fix: docs
    {{ run }} ruff check --fix .
    {{ run }} ruff format .

# Style and the common mistakes
[group('check')]
lint:
    {{ run }} ruff check .
    {{ run }} ruff format --check .

# Types, strictly
[group('check')]
types:
    {{ run }} mypy

# Imports point one way
[group('check')]
imports:
    {{ run }} lint-imports --no-cache

# The tests: under five minutes, nothing but PyPI
[group('test')]
test *options:
    {{ run }} pytest -m "not system and not long" "$@"

# The tests against real programs from Debian (apt-get install nghttp2-client)
[group('test')]
test-system *options:
    {{ run }} pytest -m "system" "$@"

# What the batcher alone costs a request
[group('bench')]
bench-batcher *options:
    {{ run }} python bench/batcher.py "$@"

# What the server keeps of an empty gRPC servicer's calls/s (apt-get install nghttp2-client)
[group('bench')]
bench-overhead *options:
    {{ run }} python bench/overhead.py "$@"

# What takes minutes or gigabytes
[group('test')]
test-long *options:
    {{ run }} pytest -m "long" --timeout 3600 "$@"

# One benchmark, one question: bench/{name}.py; `just bench many`, `just bench topk --help` …
[group('bench')]
bench name="many" *options:
    {{ run }} python bench/{{ name }}.py {{ options }}

# How many histories a second batch calls and streams bring
[group('bench')]
bench-many *options:
    {{ run }} python bench/many.py {{ options }}

# What a vocabulary costs, by its number of keys
[group('bench')]
bench-vocabulary *options:
    {{ run }} python bench/vocabulary.py {{ options }}

# How long the exact top-K takes, against the plain graph and faiss
[group('bench')]
bench-topk *options:
    {{ uv }} run --group dev --group model --with faiss-cpu python -m bench.topk "$@"

# The proto's style, and that no old client breaks
[group('proto')]
proto-lint:
    #!/usr/bin/env bash
    set -euo pipefail
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    just _descriptors "$work"
    {{ run }} buf lint "$work/recommend_api.binpb" --path {{ proto_file }}
    {{ run }} buf breaking "$work/recommend_api.binpb" --against proto/released.binpb --path {{ proto_file }}

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
        --descriptor_set_out={{ out }}/recommend_api.binpb --include_imports --include_source_info {{ proto_file }}

_generate out:
    #!/usr/bin/env bash
    set -euo pipefail
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    just _descriptors "$work"
    {{ run }} python -m grpc_tools.protoc --descriptor_set_in="$work/recommend_api.binpb" \
        --python_out="$work" --pyi_out="$work" --grpc_python_out="$work" --mypy_grpc_out=quiet:"$work" {{ proto_file }}
    {{ run }} python -m grpc_tools.protoc --descriptor_set_in="$work/recommend_api.binpb" \
        --python_out="$work" --pyi_out="$work" buf/validate/validate.proto
    mkdir -p {{ out }}/recommend_api/v1 {{ out }}/recommend_api/validate
    cp "$work"/recommend_api.binpb "$work"/recommend_api/v1/* {{ out }}/recommend_api/v1/
    cp "$work"/buf/validate/* {{ out }}/recommend_api/validate/
    sed -i.old -E \
        -e 's/\b(import |from |= )recommend_api\.v1/\1recommender.recommend_api.v1/' \
        -e 's/\bfrom buf\.validate/from recommender.recommend_api.validate/' \
        {{ out }}/recommend_api/v1/*.py*
    rm {{ out }}/recommend_api/v1/*.old

# Write the pages that come from the code: .env.template and docs/settings.md
[group('docs')]
docs:
    {{ uv }} run recommender config --template > .env.template
    {{ uv }} run recommender config --markdown > docs/settings.md

[private]
docs-check:
    {{ uv }} run recommender config --template | diff .env.template -
    {{ uv }} run recommender config --markdown | diff docs/settings.md -
