#!/usr/bin/env bash
# Builds a target of the Containerfile where no image registry is reached: Debian's packages make the base image, the
# uv of this machine the other one; then starts it. Needs root, and from Debian: buildah podman runc debootstrap.
#   offline.sh [TARGET]      cpu by default
# It proves the Containerfile and the image's content, not the base image that CI takes: that is Debian's Python here.
set -euo pipefail
target=${1:-cpu}
root=$(cd "$(dirname "$0")/../.." && pwd)
# A store of its own: no image of anybody else is touched, and nothing stays.
store=$(mktemp -d --tmpdir recommender-image.XXXXXX)
storage=(--root "$store/root" --runroot "$store/run" --storage-driver overlay)
export BUILDAH_ISOLATION=chroot
trap 'umount --recursive "$store/root/overlay" 2> /dev/null || true; rm --recursive --force "$store"' EXIT
for tool in buildah podman runc debootstrap; do
    command -v "$tool" > /dev/null || { echo "offline.sh needs $tool: apt-get install buildah podman runc debootstrap" >&2; exit 1; }
done
# The program itself, not a shim of it.
uv=$(uv run --no-project --quiet printenv UV) || { echo "offline.sh needs uv: pip install uv" >&2; exit 1; }

echo "base image from Debian's packages …"
debootstrap --variant=minbase --include=python3,python3-venv,libpython3.11,ca-certificates bookworm "$store/debian" > "$store/log" 2>&1 ||
    { tail -5 "$store/log" >&2; exit 1; }
rm --recursive --force "$store"/debian/var/cache/apt/* "$store"/debian/var/lib/apt/lists/*
ln --symbolic --force /usr/bin/python3 "$store/debian/usr/local/bin/python3"
# The certificates that this machine trusts, so that uv reaches the package index from inside.
cp --dereference /etc/ssl/certs/ca-certificates.crt "$store/debian/etc/ssl/certs/"
image() { # NAME SOURCE DESTINATION: an image with that folder or file in it
    local made
    made=$(buildah "${storage[@]}" from scratch)
    buildah "${storage[@]}" copy --quiet "$made" "$2" "$3" > /dev/null
    buildah "${storage[@]}" config --env PATH=/usr/local/bin:/usr/bin:/bin --env UV_SYSTEM_CERTS=true "$made"
    buildah "${storage[@]}" commit --quiet --format docker "$made" "$1" > /dev/null
    buildah "${storage[@]}" rm "$made" > /dev/null
}
image localhost/python:offline "$store/debian" /
image localhost/uv:offline "$uv" /uv

echo "target $target …"
buildah "${storage[@]}" build --quiet --format docker --file "$root/Containerfile" --target "$target" \
    --build-arg PYTHON_IMAGE=localhost/python:offline --build-arg UV_IMAGE=localhost/uv:offline \
    --tag "localhost/recommender:$target" "$root" > /dev/null

# Limits below those of this shell: a container may not raise them.
cat > "$store/podman" <<EOF
#!/usr/bin/env bash
exec podman ${storage[*]} --runtime runc --cgroup-manager cgroupfs "\$@"
EOF
chmod +x "$store/podman"
bash "$root/deploy/image/smoke.sh" "$store/podman" "localhost/recommender:$target" \
    --network none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024
