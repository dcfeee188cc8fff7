#!/usr/bin/env bash
# Push a built site to the branch gh-pages of a repository, as its only commit: bash deploy/pages.sh FOLDER REMOTE
# Over HTTPS, git authenticates with the token in TOKEN. The commit's author is the GitHub user that started the workflow.
set -euo pipefail

site=$1 remote=$2
[ -f "$site/index.html" ] || { echo "pages: $site has no index.html" >&2; exit 1; }
commit=${GITHUB_SHA:-$(git rev-parse HEAD)}
author=${GITHUB_ACTOR:-pages}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GIT_DIR=$work/git GIT_WORK_TREE=$site

git init --quiet --initial-branch gh-pages
# Without this file GitHub would run Jekyll on the pages.
touch "$site/.nojekyll"
git add --all --force
git -c "user.name=$author" -c "user.email=${GITHUB_ACTOR_ID:-0}+$author@users.noreply.github.com" \
    commit --quiet --message "Site of $commit"
# Git's own shell reads the token, so that no command line has it.
# shellcheck disable=SC2016
git -c 'credential.helper=!f() { echo username=x-access-token; echo "password=$TOKEN"; }; f' \
    push --quiet --force "$remote" gh-pages
