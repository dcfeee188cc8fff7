#!/usr/bin/env bash
# Ask in JSON over HTTP: recommend.sh [HOST:PORT]. The server needs RECOMMENDER_EDGE=envoy and RECOMMENDER_WEB=true.
set -euo pipefail

target=${1:-localhost:50051}

ask() {
    curl --silent --show-error --fail-with-body --max-time 5 \
        --header 'content-type: application/json' --header 'grpc-timeout: 4S' \
        --data "$2" "http://$target/recommend_api.v1.RecommenderService/$1"
    echo
}

ask Recommend '{"itemIds": [1, 2, 3, 4], "limit": 5, "excludeHistory": true}'
ask BatchRecommend '{"requests": [{"itemIds": [0], "limit": 3}, {"itemIds": [-1]}]}'
ask GetModel '{}'
