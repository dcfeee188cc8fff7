"""The sentence for each bad input, next to the first words of version 0.1's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from recommender.errors import SettingsError
from recommender.settings.settings import Settings

LISTED = "`recommender config` lists them all."
LINKS = "Kubernetes sets such variables for a Service named `recommender`: set `enableServiceLinks: false` in the pod."
TEXT = "it must be UTF-8 text with lines as `port: 50051`"
RANGE = "input should be less than or equal to 65535"
INTEGER = "input should be a valid integer, unable to parse string as an integer"
PLACES = "it names a source of settings, and is taken from the command line and the environment only"
NO_FILE = "it must be a file whose name ends in .toml, .yaml, .yml"


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A bad input and the sentence for it; `before` where there was another."""

    after: str
    before: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str | bytes | None] = field(default_factory=dict)
    """Contents; None is a folder."""
    options: Mapping[str, object] = field(default_factory=dict)


SAME = {
    "unknown key in the environment": Bad(
        environment={"MAX_BATCHSIZE": "9"},
        after="RECOMMENDER_MAX_BATCHSIZE='9' in the environment is not a setting; the nearest is "
        f"RECOMMENDER_MAX_BATCH_SIZE. {LISTED}",
    ),
    "unknown key without a value": Bad(
        environment={"PROT": ""},
        after=f"RECOMMENDER_PROT='' in the environment is not a setting; the nearest is RECOMMENDER_PORT. {LISTED}",
    ),
    "unknown key in .env": Bad(
        files={".env": "RECOMMENDER_PROT=9"},
        after=f"RECOMMENDER_PROT='9' in .env is not a setting; the nearest is RECOMMENDER_PORT. {LISTED}",
    ),
    "unknown key in .env.dev, without =": Bad(
        files={".env.dev": "RECOMMENDER_PROT"},
        after=f"RECOMMENDER_PROT='' in .env.dev is not a setting; the nearest is RECOMMENDER_PORT. {LISTED}",
    ),
    "service link over a setting": Bad(
        environment={"PORT": "tcp://10.3.2.1:50051"},
        after=f"RECOMMENDER_PORT='tcp://10.3.2.1:50051' in the environment cannot be used: {INTEGER}. {LINKS}",
    ),
    "service link, port": Bad(
        environment={"PORT_50051_TCP": "tcp://10.3.2.1:50051"},
        after="RECOMMENDER_PORT_50051_TCP='tcp://10.3.2.1:50051' in the environment is not a setting; the nearest is "
        f"RECOMMENDER_PORT. {LISTED} {LINKS}",
    ),
    "service link, host": Bad(
        environment={"SERVICE_HOST": "10.3.2.1"},
        after="RECOMMENDER_SERVICE_HOST='10.3.2.1' in the environment is not a setting; the nearest is "
        f"RECOMMENDER_DEVICE. {LISTED} {LINKS}",
    ),
    "number out of range": Bad(
        environment={"PORT": "65536"},
        after=f"RECOMMENDER_PORT='65536' in the environment cannot be used: {RANGE}.",
    ),
    "number too small, in .env": Bad(
        files={".env": "RECOMMENDER_MAX_BATCH_SIZE=0"},
        after="RECOMMENDER_MAX_BATCH_SIZE='0' in .env cannot be used: input should be greater than or equal to 1.",
    ),
    "no number": Bad(
        environment={"PORT": "many"}, after=f"RECOMMENDER_PORT='many' in the environment cannot be used: {INTEGER}."
    ),
    "not of the enumeration": Bad(
        environment={"DEVICE": "tpu"},
        after="RECOMMENDER_DEVICE='tpu' in the environment cannot be used: input should be 'auto', 'cpu', 'cuda' or "
        "'coreml'.",
    ),
    "no log level": Bad(
        environment={"LOG_LEVEL": "loud"},
        after="RECOMMENDER_LOG_LEVEL='loud' in the environment cannot be used: input should be 'debug', 'info', "
        "'warning' or 'error'.",
    ),
    "no boolean": Bad(
        environment={"THREAD_SPINNING": "perhaps"},
        after="RECOMMENDER_THREAD_SPINNING='perhaps' in the environment cannot be used: input should be a valid "
        "boolean, unable to interpret input.",
    ),
    "two bad values": Bad(
        environment={"PORT": "x", "THREADS": "-1"},
        after=f"RECOMMENDER_PORT='x' in the environment cannot be used: {INTEGER}. RECOMMENDER_THREADS='-1' in the "
        "environment cannot be used: input should be greater than or equal to 0.",
    ),
    "line of .env without =": Bad(
        files={".env": "RECOMMENDER_PORT=1\nnot a line\n"},
        after=".env, line 2, is not KEY=value; correct it, or start it with a #",
    ),
    ".env is a folder": Bad(
        files={".env": None},
        after=".env cannot be read: [Errno 21] Is a directory: '.env'; it must be UTF-8 text, as .env.template is, and "
        "readable for this user",
    ),
    ".env is no text": Bad(
        files={".env": b"RECOMMENDER_HOST=\xff"},
        after=".env cannot be read: 'utf-8' codec can't decode byte 0xff in position 17: invalid start byte; it must "
        "be UTF-8 text, as .env.template is, and readable for this user",
    ),
    "settings that need each other": Bad(
        environment={"TLS_KEY": "key.pem"},
        after="RECOMMENDER_TLS_CERTIFICATE and RECOMMENDER_TLS_KEY go together: set both or neither",
    ),
}
BETTER = {
    "bad option over a good variable": Bad(
        environment={"PORT": "1"},
        options={"port": 99_999},
        before=f"RECOMMENDER_PORT=99999 in the environment cannot be used: {RANGE}.",
        after=f"RECOMMENDER_PORT=99999 cannot be used: {RANGE}.",
    ),
    "two unknown keys": Bad(
        environment={"PROT": "1"},
        files={".env": "RECOMMENDER_HOTS=x"},
        before=f"RECOMMENDER_HOTS='x' in .env is not a setting; the nearest is RECOMMENDER_HOST. {LISTED}",
        after=f"RECOMMENDER_HOTS='x' in .env is not a setting; the nearest is RECOMMENDER_HOST. {LISTED} "
        f"RECOMMENDER_PROT='1' in the environment is not a setting; the nearest is RECOMMENDER_PORT. {LISTED}",
    ),
}
NEW = {
    "unknown key in TOML": Bad(
        environment={"CONFIG_FILE": "a.toml"},
        files={"a.toml": "prot = 9"},
        after=f"prot=9 in a.toml is not a setting; the nearest is port. {LISTED}",
    ),
    "unknown key in YAML": Bad(
        environment={"CONFIG_FILE": "a.yaml"},
        files={"a.yaml": "RECOMMENDER_PORT: 9"},
        after=f"RECOMMENDER_PORT=9 in a.yaml is not a setting; the nearest is port. {LISTED}",
    ),
    "table in TOML": Bad(
        environment={"CONFIG_FILE": "a.toml"},
        files={"a.toml": "[network]\nport = 9"},
        after="network={'port': 9} in a.toml is a table: put settings at the top of the file, outside tables.",
    ),
    "bad value in TOML": Bad(
        environment={"CONFIG_FILE": "a.toml"},
        files={"a.toml": "port = 70000"},
        after=f"port=70000 in a.toml cannot be used: {RANGE}.",
    ),
    "no TOML": Bad(
        environment={"CONFIG_FILE": "a.toml"},
        files={"a.toml": "port 9"},
        after="RECOMMENDER_CONFIG_FILE=a.toml cannot be read: Expected '=' after a key in a key/value pair (at line 1, "
        "column 6); it must be UTF-8 text with lines as `port = 50051`",
    ),
    "no YAML": Bad(
        environment={"CONFIG_FILE": "a.yaml"},
        files={"a.yaml": "port: [9"},
        after='RECOMMENDER_CONFIG_FILE=a.yaml cannot be read: while parsing a flow sequence in "a.yaml", line 1, '
        f"column 7 expected ',' or ']', but got '<stream end>' in \"a.yaml\", line 1, column 9; {TEXT}",
    ),
    "YAML without names": Bad(
        environment={"CONFIG_FILE": "a.yaml"},
        files={"a.yaml": "- port"},
        after="RECOMMENDER_CONFIG_FILE=a.yaml cannot be read: it does not hold values by name; " + TEXT,
    ),
    "YAML with a number for a name": Bad(
        environment={"CONFIG_FILE": "a.yaml"},
        files={"a.yaml": "7: 8"},
        after="RECOMMENDER_CONFIG_FILE=a.yaml cannot be read: it does not hold values by name; " + TEXT,
    ),
    "YAML that is no text": Bad(
        environment={"CONFIG_FILE": "a.yaml"},
        files={"a.yaml": b"port: \xff"},
        after="RECOMMENDER_CONFIG_FILE=a.yaml cannot be read: 'utf-8' codec can't decode byte 0xff in position 6: "
        f"invalid start byte; {TEXT}",
    ),
    "configuration file of another kind": Bad(
        environment={"CONFIG_FILE": "a.json"},
        files={"a.json": "{}"},
        after=f"RECOMMENDER_CONFIG_FILE=a.json cannot be used: {NO_FILE}",
    ),
    "configuration file that does not exist": Bad(
        options={"config_file": "a.toml"}, after=f"RECOMMENDER_CONFIG_FILE=a.toml cannot be used: {NO_FILE}"
    ),
    "place of a file in .env": Bad(
        files={".env": "RECOMMENDER_CONFIG_FILE=a.toml"},
        after=f"RECOMMENDER_CONFIG_FILE='a.toml' in .env cannot be used: {PLACES}",
    ),
    "place of a folder in TOML": Bad(
        environment={"CONFIG_FILE": "a.toml"},
        files={"a.toml": "secrets_dir = '/x'"},
        after=f"secrets_dir='/x' in a.toml cannot be used: {PLACES}",
    ),
    "secret that is no setting": Bad(
        environment={"SECRETS_DIR": "s"},
        files={"s/RECOMMENDER_PROT": "hunter2"},
        after=f"RECOMMENDER_PROT='**********' in s is not a setting; the nearest is RECOMMENDER_PORT. {LISTED}",
    ),
    "secret that a setting cannot have": Bad(
        environment={"SECRETS_DIR": "s"},
        files={"s/RECOMMENDER_PORT": "hunter2"},
        after=f"RECOMMENDER_PORT='**********' in s cannot be used: {INTEGER}.",
    ),
    "secret that is no text": Bad(
        environment={"SECRETS_DIR": "s"},
        files={"s/RECOMMENDER_HOST": b"\xff"},
        after="RECOMMENDER_HOST in s cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: invalid start "
        "byte; it must be a file of UTF-8 text, readable for this user",
    ),
    "secrets in no folder": Bad(
        environment={"SECRETS_DIR": "s"}, files={"s": ""}, after="RECOMMENDER_SECRETS_DIR=s is not a folder"
    ),
    "secrets in a folder that is absent": Bad(
        environment={"SECRETS_DIR": "s"},
        after="RECOMMENDER_SECRETS_DIR=s does not exist: make it, or leave the setting empty",
    ),
}


@pytest.mark.parametrize("bad", [*SAME.values(), *BETTER.values(), *NEW.values()], ids=[*SAME, *BETTER, *NEW])
def test_a_bad_input_is_refused_in_these_words(bad: Bad, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, content in bad.files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    for name, value in bad.environment.items():
        monkeypatch.setenv(f"RECOMMENDER_{name}", value)

    with pytest.raises(SettingsError) as refused:
        Settings.load(bad.options)

    assert str(refused.value) == bad.after
