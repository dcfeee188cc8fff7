#!/usr/bin/env bash
# Starts an image as production does (another user, read-only, no rights) and holds it to the facts of the reference
# model, to what it must not have in it, and to a clean stop.
#   smoke.sh ENGINE IMAGE [OPTION OF `run`]…      for example: smoke.sh docker recommender:scan
set -euo pipefail
engine=$1 image=$2
shift 2
root=$(cd "$(dirname "$0")/../.." && pwd)
name=recommender-smoke-$$
container() {
    "$engine" run --name "$name" --read-only --tmpfs /tmp:size=16m --cap-drop all --security-opt no-new-privileges \
        --env RECOMMENDER_PLAINTEXT=true --volume "$root/weights:/models:ro" "$@"
}
fail() {
    echo "smoke: $*" >&2
    "$engine" logs "$name" >&2 || true
    exit 1
}
trap '"$engine" rm --force "$name" > /dev/null 2>&1 || true' EXIT

container --detach "$@" "$image" > /dev/null
for _ in $(seq 100); do
    "$engine" logs "$name" 2>&1 | grep --quiet '"event": "ready"' && break
    [ "$("$engine" inspect --format '{{.State.Running}}' "$name")" = true ] || fail "the server ended before it was ready"
    sleep 0.2
done
answer=$("$engine" exec "$name" recommender client --items 1,2,3,4 || fail "the server did not answer")
grep --quiet '5510 *1021 *9640 *1682 *2544 *3281 *874 *8599 *3572 *2766' <<< "$answer" || fail "wrong answer: $answer"

"$engine" exec "$name" recommender health > /dev/null || fail "recommender health says no"
"$engine" exec --interactive "$name" python - <<'EOF' || fail "the image is not what it should be"
import importlib.util, os, pathlib, shutil, sys
faults = []
if os.getuid() == 0:
    faults.append("runs as root")
faults += [f"has {tool}" for tool in ("gcc", "cc", "make", "pip", "uv", "git", "curl") if shutil.which(tool)]
faults += [f"has the package {name}" for name in ("torch", "onnx", "pytest", "pip") if importlib.util.find_spec(name)]
for folder in ("/", "/opt/recommender", "/models"):
    try:
        pathlib.Path(folder, "probe").touch()
        faults.append(f"can write to {folder}")
    except OSError:
        pass
print("; ".join(faults) or "user, tools and file system are as they should be")
sys.exit(bool(faults))
EOF

"$engine" stop --time 20 "$name" > /dev/null
code=$("$engine" inspect --format '{{.State.ExitCode}}' "$name")
[ "$code" = 0 ] || fail "exit code $code after SIGTERM"
"$engine" logs "$name" 2>&1 | grep --quiet '"event": "stopped"' || fail "no drain in the log"
size=$("$engine" image inspect --format '{{.Size}}' "$image")
echo "smoke: $image answers, stops with 0, and is $((size / 1000000)) MB"
