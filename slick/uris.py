"""URIs: they must not hold secrets, and published files must not hold paths. Pure."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from slick.errors import SettingsError

_S3 = (
    *("region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion"),
    *("force_virtual_addressing", "tls_ca_file_path", "connect_timeout", "request_timeout"),
)
_AZURE = (
    *("blob_storage_authority", "blob_storage_scheme", "dfs_storage_authority", "dfs_storage_scheme", "enable_tls"),
    *("client_id", "tenant_id"),
)
_ALLOWED_PARAMETERS: dict[str, tuple[str, ...]] = {
    "s3": _S3,
    **dict.fromkeys(("gs", "gcs"), ("endpoint_override", "scheme", "retry_limit_seconds", "project_id")),
    **dict.fromkeys(("abfs", "abfss"), _AZURE),
    **dict.fromkeys(("hdfs", "viewfs"), ("replication", "buffer_size", "default_block_size")),
}
"""Options of pyarrow's file systems that are not secret, by scheme. All others are refused, including future ones."""

_SCHEMES_WITH_PUBLIC_USER = ("abfs", "abfss", "hdfs", "viewfs")
"""Schemes whose part before the `@` is a container or user name. In other schemes it is a key."""


def find_secrets(uri: str) -> list[str]:
    """Names of the parts of a URI that are or may be secrets, never their values.

    >>> find_secrets("s3://bucket/study?region=eu-west-1")
    []
    >>> find_secrets("s3://KEY:SECRET@bucket/study?session_token=x")
    ['KEY:SECRET@', 'session_token']
    """
    try:
        parts = urlsplit(uri)
        user, password = parts.username, parts.password
    except ValueError:  # not a URI, so its parts are unknown
        return ["a URI that cannot be parsed"]
    scheme = parts.scheme.lower()
    names = []
    if password is not None or (user is not None and scheme not in _SCHEMES_WITH_PUBLIC_USER):
        names.append("KEY:SECRET@")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if not value:
            names.append("an option without a value")  # its name may be the secret
        elif name not in _ALLOWED_PARAMETERS.get(scheme, ()):
            names.append(name)
        elif "@" in unquote(value) or "?" in unquote(value):  # a URI within a URI, as in endpoint_override
            names.append(f"{name}=KEY:SECRET@")
    if parts.fragment and "=" in parts.fragment:
        names.append("#...")
    return names


def check_uri(uri: str, flag: str = "") -> None:
    """Refuse a URI that holds a secret. The message does not repeat the secret.

    Args:
        uri: a URI, a path or a name.
        flag: the flag with this value, for the message.

    Raises:
        SettingsError: it holds a secret, or an option that may be one.
    """
    names = find_secrets(uri) if "://" in uri else []
    if not names:
        return
    scheme = uri.partition("://")[0]
    allowed = ", ".join(_ALLOWED_PARAMETERS.get(scheme.lower(), ())) or "none"
    raise SettingsError(
        f"{flag}{' ' * bool(flag)}{scheme}://... holds {', '.join(names)}, which is or may be a secret, and would be "
        f"written to manifests and logs; options that a {scheme} URI may have: {allowed}. Set keys in the "
        "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, "
        "AZURE_STORAGE_ACCOUNT_KEY, MLFLOW_TRACKING_PASSWORD, ...), or use the machine's role"
    )


def check_command_line(arguments: Iterable[str]) -> None:
    """Refuse a command line if any argument is a URI with a secret.

    Raises:
        SettingsError: see `check_uri`.
    """
    flag = ""
    for argument in arguments:
        name, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        check_uri(value if equals else argument, name if equals else flag)
        flag = argument if argument.startswith("--") and not equals else ""


def public_name(location: str) -> str:
    """The name of a model or data set for files that are shared: its hub id, or the last part of its path or URI.

    The folders above it and the options of an object store reveal where it is stored, and often the user's name.

    >>> public_name("org/name"), public_name("/home/ada/models/llama/"), public_name("s3://team/x.zip?region=eu-west-1")
    ('org/name', 'llama', 'x.zip')
    """
    if "://" not in location and not location.startswith(("/", ".", "~")):
        return location
    return location.partition("?")[0].rstrip("/").rpartition("/")[2]


def redact_paths(settings: Any) -> Any:
    """JSON values in which every path or URI is shortened by `public_name`.

    >>> redact_paths({"model": "/home/ada/llama", "sets": ["unknown-050"], "grid": {"source": "~/x.zip"}})
    {'model': 'llama', 'sets': ['unknown-050'], 'grid': {'source': 'x.zip'}}
    """
    if isinstance(settings, dict):
        return {name: redact_paths(value) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [redact_paths(value) for value in settings]
    return public_name(settings) if isinstance(settings, str) else settings
