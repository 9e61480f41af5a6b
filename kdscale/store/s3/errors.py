"""What botocore raises, as one line that says what to set, and which of it may pass.

Only error codes and classes are shown, never a message of the service or of botocore: a message
may quote what was sent, and a credential must not end in a log.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from boto3.exceptions import Boto3Error
from botocore import exceptions as boto

from kdscale.errors import KdscaleError, by_proxy
from kdscale.store.workspace import DamagedError

# Everything that a request can fail with.
ERRORS = (boto.BotoCoreError, boto.ClientError, Boto3Error)

# A body cut short on its way, here or there, a conditional put that met another one, a throttle.
_PASSING_CODES = {
    "IncompleteBody",
    "BadDigest",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
    "ConditionalRequestConflict",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
}
_PASSING_STATUS = (429, 500, 502, 503, 504)
_PASSING_ERRORS = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
)

MISSING_CODES = {"NoSuchKey", "404"}  # the second where an answer has no body
_SHORT_CODES = {"InvalidRange", "416"}  # an object that ends before the part that was asked for

_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)"
_CREDENTIAL_CODES = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AuthFailure",
    "ExpiredToken",
    "InvalidToken",
    "InvalidTokenId",
    "InvalidClientTokenId",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
}
_REGION_CODES = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
    "301",
}
_CREDENTIAL_ERRORS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.SSOError,
)
_PROFILE_ERRORS = (boto.ProfileNotFound, boto.ConfigNotFound, boto.ConfigParseError)
_REGION_ERRORS = (boto.NoRegionError, boto.InvalidRegionError)
_BUCKET_ERRORS = (boto.ParamValidationError, boto.InvalidDNSNameError)
_NETWORK_ERRORS = (boto.ConnectionError, boto.HTTPClientError)


def code_of(error: BaseException) -> str:
    """The service's error code; "" for what did not come from the service."""
    if not isinstance(error, boto.ClientError):
        return ""
    return error.response.get("Error", {}).get("Code", "")


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, boto.ClientError):
        return code_of(error) in _PASSING_CODES or _status(error) in _PASSING_STATUS
    return isinstance(error, _PASSING_ERRORS) and not isinstance(error, boto.SSLError)


def _status(error: boto.ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def explain(error: Exception, bucket: str, endpoint: str | None) -> KdscaleError:
    """endpoint: a URL, of which scheme, host and port are shown; None: not known yet."""
    where = f"bucket {bucket}" + (f" at {_plain(endpoint)}" if endpoint else "")
    if isinstance(error, boto.ClientError):
        lost = MISSING_CODES | _SHORT_CODES
        if code_of(error) in lost and error.operation_name in ("GetObject", "HeadObject"):
            state = "gone" if code_of(error) in MISSING_CODES else "cut short"
            return DamagedError(
                f"{where}: an object that a manifest lists is {state}; remove what it belongs to "
                "(kdscale artifacts shows it), and run again"
            )
        told = _explain_answer(error, where)
        # An answer without a code of S3's may be the proxy's own.
        answered = bool(code_of(error)) and not code_of(error).isdecimal()
    else:
        told = _explain(error, where)
        answered = not isinstance(error, _NETWORK_ERRORS)
    return KdscaleError(told if answered or endpoint is None else told + by_proxy(endpoint))


def _explain_answer(error: boto.ClientError, where: str) -> str:
    code = code_of(error)
    status = _status(error)
    said = f"{where}: {error.operation_name} was answered {status} {code}".rstrip()
    if code in _CREDENTIAL_CODES:
        return f"{said}; the credentials are wrong or have expired: set {_KEYS}"
    if code == "RequestTimeTooSkewed":
        return f"{said}; set this machine's clock"
    if code == "NoSuchBucket":
        return f"{said}; create the bucket, or name another in storage.uri (s3://bucket/prefix)"
    if code in _REGION_CODES:
        return f"{said}; set AWS_DEFAULT_REGION to the bucket's region"
    if code == "NotImplemented":
        return f"{said}; this store lacks what kdscale needs, use another (AWS_ENDPOINT_URL)"
    if status in (401, 403):
        return (
            f"{said}; set {_KEYS} of someone who may get, put, delete and list objects in this "
            "bucket"
        )
    if status in _PASSING_STATUS:
        return f"{said}, try after try; the store is overloaded or down, run again later"
    return f"{said}; check storage.uri and AWS_ENDPOINT_URL"


def _explain(error: Exception, where: str) -> str:
    name = type(error).__name__
    if isinstance(error, _CREDENTIAL_ERRORS):
        return f"{where}: no usable credentials ({name}); set {_KEYS}"
    if isinstance(error, _PROFILE_ERRORS):
        return f"{where}: {name}; correct AWS_PROFILE and AWS_CONFIG_FILE"
    if isinstance(error, _REGION_ERRORS):
        return f"{where}: no usable region ({name}); set AWS_DEFAULT_REGION"
    if isinstance(error, _BUCKET_ERRORS):
        return f"{where}: no name that a bucket can have; correct storage.uri (s3://bucket/prefix)"
    if isinstance(error, boto.SSLError):
        return f"{where}: no secure connection ({name}); set AWS_CA_BUNDLE or AWS_ENDPOINT_URL"
    if isinstance(error, _NETWORK_ERRORS):
        return (
            f"{where}: cannot be reached ({name}); set AWS_ENDPOINT_URL to the store's address, "
            "or see whether it is running"
        )
    return f"{where}: {name}; check the AWS_ settings"


def _plain(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    host = parts.hostname or "?"
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
