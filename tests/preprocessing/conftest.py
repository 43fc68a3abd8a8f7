"""A store that asks for credentials."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator

import boto3
import pytest

from realcustom import storage
from tests.support.corpora import jpeg, picture, sample, tar_bytes

READ_ONLY = {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetObject"], "Resource": "*"}


@pytest.fixture
def session(bucket: str) -> dict[str, str]:
    """Keys and token of a session of one who may only read."""
    iam, name = boto3.client("iam"), "visitor"
    trusted = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    trust, policy = ({"Version": "2012-10-17", "Statement": [one]} for one in (trusted, READ_ONLY))
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    iam.put_role_policy(RoleName=name, PolicyName="read", PolicyDocument=json.dumps(policy))
    given = boto3.client("sts").assume_role(RoleArn=arn, RoleSessionName="visit")["Credentials"]
    names = {"ACCESS_KEY_ID": "AccessKeyId", "SECRET_ACCESS_KEY": "SecretAccessKey", "SESSION_TOKEN": "SessionToken"}
    return {f"AWS_{name}": given[field] for name, field in names.items()}


@pytest.fixture
def guarded(bucket: str, session: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The bucket with a corpus, its server asking for credentials from here on; the keys of one who may only read."""
    storage.write_bytes(f"{bucket}/raw/s.tar", tar_bytes(sample("a", jpeg(picture(0)))))
    iam = boto3.client("iam")
    iam.create_user(UserName="reader")
    policy = json.dumps({"Version": "2012-10-17", "Statement": [READ_ONLY]})
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    _moto("reset-auth", "0")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the credentials that it saw
    yield {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    _moto("reset-auth", "inf")
    _moto("reset", "")  # users outlive a server otherwise


def _moto(what: str, data: str) -> None:
    url = os.environ["AWS_ENDPOINT_URL"] + f"/moto-api/{what}"
    request = urllib.request.Request(url, data=data.encode(), headers={"Content-Type": "text/plain"})
    urllib.request.urlopen(request).close()
