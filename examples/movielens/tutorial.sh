#!/usr/bin/env bash
# The tutorial of docs/tutorial.md in one go: tutorial.sh [rectools|implicit] [folder]
set -euo pipefail
cd "$(dirname "$0")/../.."
library=${1:-rectools}
folder=$(realpath -m "${2:-movielens}")
port=${RECOMMENDER_PORT:-50051}
uv=${UV:-uv}

case $library in
    rectools) packages='rectools[torch]==0.19.0' options=() ;;
    implicit)
        packages='implicit==0.7.3'
        options=(--item-keys "$folder/items.txt" --user-keys "$folder/users.txt")
        ;;
    *)
        echo "tutorial.sh: $library is neither rectools nor implicit" >&2
        exit 2
        ;;
esac

step() { printf '\n$' && printf ' %q' "$@" && printf '\n' && "$@"; }

file_of() { if [ "$library" = implicit ]; then echo "$folder/model-$1.npz"; else echo "$folder/model-$1"; fi; }

import() {
    step recommender import "$library" "$(file_of "$1")" --python "$folder/$library/bin/python" --interactions "$folder/train.csv" \
        --evaluate "$folder/all.csv" --output "$2/model.onnx" --name movies --version "$1" ${options[@]+"${options[@]}"}
}

mkdir -p "$folder"
rm -rf "$folder/models" "$folder/next"
step "$uv" venv --quiet --allow-existing "$folder/$library"
step "$uv" pip install --quiet --python "$folder/$library/bin/python" "$packages"
step "$uv" pip install --quiet --no-deps --target "$folder/packages" recbole==1.2.1
step python examples/movielens/prepare.py "$folder/packages" "$folder"
for version in 1 2; do
    step "$folder/$library/bin/python" "examples/movielens/train_$library.py" "$folder" "$version"
done
import 1 "$folder/models/movies/1"
import 2 "$folder/next"

printf '\n$ RECOMMENDER_MODEL=%s recommender serve &\n' "$folder/models/movies"
RECOMMENDER_MODEL=$folder/models/movies RECOMMENDER_PORT=$port recommender serve 2> "$folder/server.log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
tries=0
until python examples/movielens/ask.py "$folder" "Toy Story" --target "localhost:$port" > /dev/null 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -gt 30 ] || ! kill -0 "$server"; then
        cat "$folder/server.log" >&2
        exit 1
    fi
    sleep 1
done
step python examples/movielens/ask.py "$folder" "Toy Story" "Star Wars" --target "localhost:$port"
step python examples/movielens/swap.py "$folder/next" "$folder/models/movies/2" --target "localhost:$port"
step python examples/movielens/ask.py "$folder" "Toy Story" "Star Wars" --target "localhost:$port"
