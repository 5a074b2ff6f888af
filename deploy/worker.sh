#!/bin/sh
# Start a worker of the pool $1 in a clone of GIT_URL, with the S3 bucket as its DVC remote.
set -eu
[ -d /clone/.git ] || git clone "$GIT_URL" /clone
cd /clone
dvc remote add --local --force --default store "s3://$S3_BUCKET"
dvc remote modify --local store endpointurl "$S3_ENDPOINT"
exec python -m flows agent --pool "$1"
