"""Addresses of files: no secrets in them, and no paths in what is published. Pure."""

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
"""Options of pyarrow's file systems that are no secrets, by scheme; all others are refused, also those of tomorrow."""

_SCHEMES_WITH_PUBLIC_USER = ("abfs", "abfss", "hdfs", "viewfs")
"""Schemes whose part before the `@` names a container or a user; in the others it is a key."""


def find_secrets(uri: str) -> list[str]:
    """Names of the parts of a URI that are, or may be, secrets; never their values.

    >>> secrets_in("s3://bucket/study?region=eu-west-1"), secrets_in("s3://KEY:SECRET@bucket/study?session_token=x")
    ([], ['KEY:SECRET@', 'session_token'])
    """
    try:
        parts = urlsplit(uri)
        user, password = parts.username, parts.password
    except ValueError:  # not an address, so that nothing can be said of its parts
        return ["an address that cannot be read"]
    scheme = parts.scheme.lower()
    names = []
    if password is not None or (user is not None and scheme not in _SCHEMES_WITH_PUBLIC_USER):
        names.append("KEY:SECRET@")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if not value:
            names.append("an option without a value")  # its name may be the secret
        elif name not in _ALLOWED_PARAMETERS.get(scheme, ()):
            names.append(name)
        elif "@" in unquote(value) or "?" in unquote(value):  # an address in an address, as endpoint_override has it
            names.append(f"{name}=KEY:SECRET@")
    if parts.fragment and "=" in parts.fragment:
        names.append("#...")
    return names


def check_uri(uri: str, flag: str = "") -> None:
    """Refuse an address that holds a secret, without repeating it.

    Args:
        uri: whatever was given; a path or a name passes.
        flag: where it was given, for the message.

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
        f"written to manifests and logs; options that a {scheme} address may have: {allowed}. Give keys by the "
        "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, "
        "AZURE_STORAGE_ACCOUNT_KEY, MLFLOW_TRACKING_PASSWORD, ...), or use the machine's role"
    )


def check_command_line(arguments: Iterable[str]) -> None:
    """Refuse a command line with a secret in an address, whichever flag has it, before anything of it is used.

    Raises:
        SettingsError: as `check_uri`.
    """
    flag = ""
    for word in arguments:
        name, is_flag, value = word.partition("=") if word.startswith("--") else ("", "", word)
        check_uri(value if is_flag else word, name if is_flag else flag)
        flag = word if word.startswith("--") and not is_flag else ""


def public_name(location: str) -> str:
    """How files that are shared name a model or a data set: by hub id, or the last part of a path or URI.

    The folders above it, and the options of an object store, say where somebody keeps it, and often who that is.

    >>> public_name("org/name"), public_name("/home/ada/models/llama/"), public_name("s3://team/x.zip?region=eu-west-1")
    ('org/name', 'llama', 'x.zip')
    """
    if "://" not in location and not location.startswith(("/", ".", "~")):
        return location
    return location.partition("?")[0].rstrip("/").rpartition("/")[2]


def redact_paths(settings: Any) -> Any:
    """JSON values in which every text that is a path or a URI is shortened by `public_name`.

    >>> without_paths({"model": "/home/ada/llama", "sets": ["unknown-050"], "grid": {"source": "~/x.zip"}})
    {'model': 'llama', 'sets': ['unknown-050'], 'grid': {'source': 'x.zip'}}
    """
    if isinstance(settings, dict):
        return {name: redact_paths(value) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [redact_paths(value) for value in settings]
    return public_name(settings) if isinstance(settings, str) else settings
