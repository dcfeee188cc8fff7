#!/usr/bin/env bash
# Build the client with Debian's Go and libraries, and run it: run.sh [HOST:PORT]
# apt-get install golang-go golang-google-grpc-dev golang-google-protobuf-dev golang-google-genproto-dev
#     golang-github-golang-protobuf-1-5-dev protobuf-compiler protoc-gen-go protoc-gen-go-grpc
set -euo pipefail

here=$(dirname "$(realpath "$0")")
path=recommender-example
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
package=$work/src/$path
mkdir -p "$package"
cp "$here/main.go" "$package"

names=()
for option in go_opt go-grpc_opt; do
    names+=("--$option=module=$path" "--$option=Mrecommend_api/v1/recommend_api.proto=$path/recommendapi"
        "--$option=Mbuf/validate/validate.proto=$path/validate")
done
# The committed descriptors hold the proto with everything that it imports.
protoc --descriptor_set_in="$here/../../../recommender/recommend_api/v1/recommend_api.binpb" \
    --go_out="$package" --go-grpc_out="$package" "${names[@]}" \
    recommend_api/v1/recommend_api.proto buf/validate/validate.proto

# Debian installs libraries for GOPATH. With a network, `go mod init` and `go mod tidy` fetch them instead.
GO111MODULE=off GOPATH=$work:/usr/share/gocode GOCACHE=${GOCACHE:-$work/cache} go build -o "$work/client" "$path"
"$work/client" "$@"
