"""Create the bucket S3_BUCKET at S3_ENDPOINT if it does not exist."""

import os
import time

import boto3
from botocore.exceptions import BotoCoreError

deadline = time.monotonic() + 60
while True:
    try:
        client = boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT"])
        there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        if os.environ["S3_BUCKET"] not in there:
            client.create_bucket(Bucket=os.environ["S3_BUCKET"])
        break
    except BotoCoreError:  # the store is still starting
        if time.monotonic() > deadline:
            raise
        time.sleep(1)
