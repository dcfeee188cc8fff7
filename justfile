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

# What takes minutes or gigabytes
[group('test')]
test-long *options:
    {{ run }} pytest -m "long" --timeout 3600 "$@"

# The proto's style, and that no old client breaks
[group('proto')]
proto-lint:
    {{ run }} buf lint
    {{ run }} buf breaking --against "{{ proto_dir }}/released.binpb"

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

_generate out:
    {{ run }} python -m grpc_tools.protoc --proto_path={{ proto_dir }} \
        --python_out={{ out }} --pyi_out={{ out }} --grpc_python_out={{ out }} --mypy_grpc_out=quiet:{{ out }} \
        --descriptor_set_out={{ out }}/recommend_api/v1/recommend_api.binpb --include_imports --include_source_info \
        {{ proto_file }}
    sed -i.old -E 's/\b(import |from |= )recommend_api\.v1/\1recommender.recommend_api.v1/' \
        {{ out }}/recommend_api/v1/recommend_api_pb2_grpc.py*
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
