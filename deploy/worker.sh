#!/bin/sh
# Start a worker of pool $1 in a clone of GIT_URL, with the S3 bucket as its DVC remote.
# The worker itself runs the newest commit of the default branch, because coordinator and worker
# must have the same version of the protocol. Stages run the coordinator's commit.
set -eu
clone=${CLONE:-/clone}
if [ -s /run/secrets/git_key ]; then
    install -D --mode=600 /run/secrets/git_key "$HOME/.ssh/git_key"
    export GIT_SSH_COMMAND="ssh -i $HOME/.ssh/git_key -o StrictHostKeyChecking=accept-new"
fi
[ -d "$clone/.git" ] || git clone --quiet "$GIT_URL" "$clone"
cd "$clone"
git remote set-url origin "$GIT_URL"
git fetch --quiet origin
git remote set-head origin --auto
git checkout --quiet --force --detach origin/HEAD
dvc remote add --local --force --default store "s3://$S3_BUCKET"
dvc remote modify --local store endpointurl "$S3_ENDPOINT"
exec python -m flows worker --pool "$1"
