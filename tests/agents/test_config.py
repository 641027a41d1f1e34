from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

import heliograph.agents.core.config as config_module
from heliograph.agents import AuditLog
from heliograph.agents.commands import gateway_app
from heliograph.agents.core.config import json_schema, read_config
from heliograph.agents.core.service import GatewayService
from heliograph.agents.core.stages import _HOMES as HOMES
from heliograph.agents.core.stages import build_stage, register_stage, stage_names
from heliograph.errors import BadInput

GOOD = {
    "mcpServers": {
        "crm": {"type": "http", "url": "http://127.0.0.1:1/mcp", "headers": {"authorization": "Bearer ${CRM_KEY}"}},
        "files": {"command": "server", "args": ["--root", "data"], "alwaysAllow": ["read"]},
        "off": {"command": "x", "disabled": True},
    },
    "globalShortcut": "",
    "heliograph": {
        "listen": {"port": 9000},
        "auth": {"tokens": [{"token": "a-token-of-some-length", "subject": "ann", "tenant": "t"}]},
        "upstreams": {"*": {"timeout_s": 5}, "crm": {"timeout_s": 2}},
        "rate": {"per_second": 2, "burst": 5},
    },
}


def written(tmp_path, content):
    path = tmp_path / "gateway.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def changed(**policy):
    return {**GOOD, "heliograph": {**GOOD["heliograph"], **policy}}


def test_usual_file_is_read_with_its_limits_and_variables(tmp_path):
    read = read_config(written(tmp_path, GOOD), {"CRM_KEY": "k"})
    assert list(read.specs) == ["crm", "files"]
    assert read.specs["crm"].headers == {"authorization": "Bearer k"}
    assert (read.specs["crm"].timeout_s, read.specs["files"].timeout_s) == (2, 5)
    assert read.specs["files"].args == ("--root", "data")
    assert read.verifier().verify("a-token-of-some-length").tenant == "t"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "not JSON"),
        ({}, "mcpServers"),
        ({"mcpServers": {}}, "no enabled server"),
        ({"mcpServers": {"a": {}}}, r"\$\.mcpServers\.a: .*url or a command"),
        ({"mcpServers": {"a": {"url": "http://x", "command": "y"}}}, "one of them"),
        ({"mcpServers": {"a": {"command": 5}}}, r"\$\.mcpServers\[\.\.\.\]\.command"),
        (changed(listen={"port": "80"}), r"\$\.heliograph\.listen\.port"),
        (changed(listen={"port": 70000}), r"\$\.heliograph\.listen\.port"),
        (changed(lisen={}), "lisen"),
        (changed(rate={"per_second": 0}), r"\$\.heliograph\.rate\.per_second"),
        (changed(upstreams={"nobody": {}}), r"\$\.heliograph\.upstreams\.nobody"),
        (changed(audit={}), r"path"),
    ],
)
def test_fault_is_refused_with_its_place(tmp_path, content, fault):
    with pytest.raises(BadInput, match=fault):
        read_config(written(tmp_path, content), {"CRM_KEY": "k"})


def test_missing_variable_is_named_with_its_place(tmp_path):
    with pytest.raises(BadInput, match=r"\$\.mcpServers\.crm\.headers\.authorization needs the variable CRM_KEY"):
        read_config(written(tmp_path, GOOD), {})


def test_published_schema_is_the_one_that_is_checked_and_accepts_the_usual_file():
    published = json.loads(Path(config_module.__file__).with_name("gateway.schema.json").read_text())
    assert published == json_schema()
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(GOOD, published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(lisen={}), published)


def test_listening_beyond_loopback_without_authentication_is_refused(tmp_path):
    policy = {"listen": {"host": "0.0.0.0"}}
    read = read_config(written(tmp_path, {"mcpServers": {"a": {"url": "http://x"}}, "heliograph": policy}))
    with pytest.raises(BadInput, match="auth"):
        GatewayService(read)


@pytest.mark.parametrize("name", ["broker", "mcpsec", "governor"])
def test_stage_is_built_or_clearly_refused(name):
    assert name in stage_names()
    if importlib.util.find_spec(HOMES[name]) is None:
        with pytest.raises(BadInput, match=f"'{name}' is not part"):
            build_stage(name)
    else:
        assert build_stage(name)


def test_unknown_stage_is_refused_with_the_names_that_there_are():
    with pytest.raises(BadInput, match="broker, governor, mcpsec"):
        build_stage("brokr")


def test_registered_stage_is_used_and_its_name_cannot_be_taken(tmp_path):
    from heliograph.agents.core.interceptor import interceptor

    made = []

    def factory(options):
        made.append(options)

        @interceptor("mine")
        async def mine(env, call_next):
            return await call_next(env)

        return [mine]

    register_stage("test_stage", factory)
    policy = {"stages": [{"name": "test_stage", "options": {"x": 1}}], "audit": {"path": "a.jsonl"}}
    service = GatewayService(
        read_config(written(tmp_path, {"mcpServers": {"a": {"url": "http://x"}}, "heliograph": policy}))
    )
    assert service.gateway.chain.names == ("audit", "mine")
    assert made == [{"x": 1}]
    service.close_audit()
    with pytest.raises(BadInput, match="registered already"):
        register_stage("test_stage", lambda options: [])


def invoke(*arguments):
    return CliRunner().invoke(gateway_app, list(arguments))


def test_command_verifies_an_audit_log_and_names_the_first_bad_line(tmp_path):
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        for number in range(3):
            head = log.append({"n": number})
    good = invoke("audit", "verify", str(path), "--head", f"3:{head.hash}")
    assert good.exit_code == 0
    assert "3 lines, the chain holds" in good.output
    path.write_bytes(path.read_bytes().replace(b'"n":1', b'"n":7'))
    bad = invoke("audit", "verify", str(path), "--json")
    assert bad.exit_code == 1
    assert json.loads(bad.output)["bad_line"] == 2


def test_command_checks_a_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("CRM_KEY", "k")
    assert invoke("check", str(written(tmp_path, GOOD))).exit_code == 0
    assert isinstance(invoke("check", str(written(tmp_path, "{"))).exception, BadInput)
    assert isinstance(invoke(str(tmp_path / "absent.json")).exception, BadInput)


def test_importing_the_package_and_its_commands_imports_nothing_heavy():
    code = (
        "import sys, heliograph.agents, heliograph.agents.commands\n"
        "heavy = {'mcp', 'torch', 'uvicorn', 'cryptography', 'httpx2', 'nats', 'msgspec', 'numpy'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
